-- +goose Up

-- What the callback_url of a task has not been told yet: one row a task, for as long
-- as there is something. The updates are its events after told, up to upto, but for
-- those that are kept for the audit trail alone; nothing of them is copied here.
-- due_at is also the lease of who is at it: until then nobody else takes the row, and
-- claim is the fence.
CREATE TABLE callback (
    task_id uuid PRIMARY KEY,
    told integer NOT NULL,
    upto integer NOT NULL,
    tries integer NOT NULL DEFAULT 0,
    claim integer NOT NULL DEFAULT 0,
    since timestamptz NOT NULL,
    due_at timestamptz NOT NULL DEFAULT now(),
    host text COLLATE "C" NOT NULL,
    problem text,
    CONSTRAINT something_to_tell CHECK (told < upto)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX callback_due ON callback (host, due_at);
CREATE INDEX callback_since ON callback (since);

-- An update that was given up. The later ones of its task go on without it.
CREATE TABLE callback_given_up (
    task_id uuid NOT NULL,
    seq integer NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    tries integer NOT NULL,
    host text NOT NULL,
    problem text NOT NULL,
    PRIMARY KEY (task_id, seq)
);

-- +goose StatementBegin
CREATE FUNCTION callback_tells(event task_event_type) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- Creation is told by the answer to it; the others are for the audit trail alone.
    SELECT event NOT IN ('created', 'released', 'redriven')
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION callback_host(url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- Whoever waits in one row behind the others of its host. Never the user info,
    -- which could be a secret; never NULL.
    SELECT coalesce(lower(regexp_replace(substring(url FROM '^https?://([^/?#]*)'), '^.*@', '')), '')
$$;
-- +goose StatementEnd

CREATE VIEW report.callback AS
SELECT
    c.task_id, t.workflow_id, t.definition_id, c.host, 'WAITING' AS state, c.told + 1 AS seq, c.tries,
    c.since, c.due_at AS next_try_at, NULL::timestamptz AS given_up_at, c.problem
FROM callback c
JOIN task t ON t.task_id = c.task_id
UNION ALL
SELECT
    g.task_id, t.workflow_id, t.definition_id, g.host, 'GIVEN_UP', g.seq, g.tries,
    e.at, NULL, g.at, g.problem
FROM callback_given_up g
JOIN task t ON t.task_id = g.task_id
JOIN task_event e ON e.task_id = g.task_id AND e.seq = g.seq;
COMMENT ON VIEW report.callback IS 'Status updates that a callback address has not taken: one row a task that waits, one row an update that was given up.';
COMMENT ON COLUMN report.callback.task_id IS 'the task';
COMMENT ON COLUMN report.callback.workflow_id IS 'the workflow it belongs to';
COMMENT ON COLUMN report.callback.definition_id IS 'the task definition';
COMMENT ON COLUMN report.callback.host IS 'host and port of its callback address';
COMMENT ON COLUMN report.callback.state IS 'WAITING or GIVEN_UP';
COMMENT ON COLUMN report.callback.seq IS 'number of the move: the first that may wait, or the one that was given up';
COMMENT ON COLUMN report.callback.tries IS 'how often it was posted in vain';
COMMENT ON COLUMN report.callback.since IS 'when it happened';
COMMENT ON COLUMN report.callback.next_try_at IS 'when it is due; while it is on its way, when it would be tried anew';
COMMENT ON COLUMN report.callback.given_up_at IS 'when it was given up';
COMMENT ON COLUMN report.callback.problem IS 'why the last try was in vain';

-- +goose Down
DROP VIEW report.callback;
DROP FUNCTION callback_host(text);
DROP FUNCTION callback_tells(task_event_type);
DROP TABLE callback_given_up, callback;
