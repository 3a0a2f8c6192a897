-- Who can run what waits: by what the processes claim, and by what remote workers ask for.

-- +goose Up

-- The kinds of jobs that a process claims, for whoever asks why a task waits. Null: a
-- program from before this column; it claims task.automated, task.integration and
-- task.manual.
ALTER TABLE executor ADD COLUMN kinds text[];

-- Which remote workers ask for work, and for which. A row for each queue that a worker asks
-- for; written some seconds after it asked or sent a heartbeat, and forgotten an hour after
-- it did so last.
CREATE TABLE worker (
    tenant_id text COLLATE "C" NOT NULL,
    worker_id text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    definition_ids text[] NOT NULL, -- that it knows; empty: all
    since timestamptz NOT NULL DEFAULT now(), -- when it asked first
    seen_at timestamptz NOT NULL DEFAULT now(), -- when it asked, or sent a heartbeat, last
    PRIMARY KEY (tenant_id, worker_id, queue)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX worker_seen_at ON worker (seen_at);

CREATE POLICY tenant ON worker FOR SELECT TO tes_read USING (current_setting('tes.tenant', true) = '=' || tenant_id);
CREATE POLICY engine ON worker TO tes_app USING (true) WITH CHECK (true);
ALTER TABLE worker ENABLE ROW LEVEL SECURITY;

-- +goose Down
DROP TABLE worker;
ALTER TABLE executor DROP COLUMN kinds;
