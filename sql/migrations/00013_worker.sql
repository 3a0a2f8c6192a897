-- Remote workers: anyone with an HTTP client takes leases, and may note down how
-- far an attempt has come.

-- +goose Up

-- A worker that did not hear our answer asks again with the same request id, and
-- is answered with the leases that it has.
ALTER TABLE lease ADD COLUMN request_id text;
CREATE INDEX lease_request ON lease (owner, request_id) WHERE request_id IS NOT NULL;

-- Outlives the attempt that wrote it: the next one goes on from here.
CREATE TABLE task_checkpoint (
    task_id uuid PRIMARY KEY,
    attempt integer NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    progress jsonb,
    checkpoint jsonb
) WITH (fillfactor = 70);

-- When a remote worker was last heard of by this process; null for never.
ALTER TABLE executor ADD COLUMN worker_at timestamptz;

-- Keys that every process must share. Rows are made by who needs them first.
CREATE TABLE secret (
    name text PRIMARY KEY,
    key bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT key_long_enough CHECK (length(key) >= 32)
);

-- +goose Down
DROP TABLE secret;
ALTER TABLE executor DROP COLUMN worker_at;
DROP TABLE task_checkpoint;
DROP INDEX lease_request;
ALTER TABLE lease DROP COLUMN request_id;
