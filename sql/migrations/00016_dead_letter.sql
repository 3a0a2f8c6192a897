-- Dead letters as a desk: alike ones have one fingerprint, and putting them back
-- to work is an operation that somebody asked for, and that can be stopped.

-- +goose Up

-- +goose StatementBegin
CREATE FUNCTION report.message_pattern(message text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- What differs between two failures of one cause: texts in quotes, UUIDs, hex
    -- and numbers. An apostrophe within a word is no quote, and a number is not hex.
    SELECT regexp_replace(regexp_replace(regexp_replace(regexp_replace(left(coalesce(message, ''), 1000),
        '"[^"]*"|`[^`]*`|(?<![[:alnum:]])''[^'']*''(?![[:alnum:]])', '<text>', 'g'),
        '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<uuid>', 'g'),
        '\m(0[xX][0-9a-fA-F]+|(?=[0-9]*[a-fA-F])(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,})\M', '<hex>', 'g'),
        '[0-9]+([.,:][0-9]+)*', '<n>', 'g')
$$;
CREATE FUNCTION report.failure_fingerprint(definition_id text, error_code text, message text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(encode(sha256(convert_to(
        jsonb_build_array(definition_id, error_code, report.message_pattern(message))::text, 'UTF8')), 'hex'), 16)
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION report.message_pattern IS 'An error message without what differs from one failure to the next of the same cause.';
COMMENT ON FUNCTION report.failure_fingerprint IS 'The same for failures of one definition, one code and one message pattern.';

CREATE OR REPLACE VIEW report.dead_letter AS
SELECT
    t.task_id, t.workflow_id, t.definition_id, t.type, t.status,
    t.error ->> 'code' AS error_code,
    left(t.error ->> 'message', 200) AS error_message,
    t.attempt AS attempts, t.ended_at AS died_at, t.job_id,
    report.failure_fingerprint(t.definition_id, t.error ->> 'code', t.error ->> 'message') AS fingerprint
FROM river_job j
JOIN task t ON t.task_id = (j.args ->> 'task_id')::uuid AND t.job_id = j.id
WHERE j.queue = 'task-execution-deadletter' AND j.state IN ('available', 'running');
COMMENT ON COLUMN report.dead_letter.fingerprint IS 'the same for alike failures: see report.failure_fingerprint';

-- An undone redrive and a discard are no failures of their own.
CREATE OR REPLACE VIEW report.throughput_by_hour AS
SELECT
    h.hour, h.type,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'created'), 0)::bigint AS created,
    coalesce(sum(h.n) FILTER (WHERE h.now = 'COMPLETED'), 0)::bigint AS completed,
    coalesce(sum(h.n) FILTER (WHERE h.now IN ('FAILED', 'TIMED_OUT') AND h.event = 'failed'), 0)::bigint AS failed,
    coalesce(sum(h.n) FILTER (WHERE h.now = 'CANCELLED'), 0)::bigint AS cancelled,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'retry'), 0)::bigint AS retried,
    round((sum(h.run_ms) FILTER (WHERE h.now = 'COMPLETED'))::numeric / nullif(sum(h.n) FILTER (WHERE h.now = 'COMPLETED'), 0), 3) AS average_run_ms
FROM tally_hour h
GROUP BY h.hour, h.type;

-- A dead letter that somebody laid aside: the task stays as it ended. It names no
-- job any more (job_id 0), so that no redrive can take it.
CREATE TABLE dead_letter_discard (
    task_id uuid PRIMARY KEY,
    job_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    reason text NOT NULL
);

CREATE TYPE redrive_state AS ENUM ('CANARY', 'RUNNING', 'STOPPED', 'DONE', 'UNDONE');
CREATE TYPE redrive_item_state AS ENUM ('WAITING', 'REDRIVEN', 'REJECTED', 'UNDONE');

-- One row a redrive that was asked for, kept as its audit. paced_at is up to when
-- its rate has been used.
CREATE TABLE redrive_operation (
    operation_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    state redrive_state NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    paced_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    rate integer NOT NULL,
    canary_count integer NOT NULL,
    canary_ratio float8 NOT NULL,
    matched integer NOT NULL,
    selection jsonb NOT NULL,
    input_patch jsonb,
    stopped_at timestamptz,
    stopped_by text,
    stop_reason text,
    undone_at timestamptz,
    undone_by text,
    undo_reason text,
    CONSTRAINT rate_positive CHECK (rate > 0),
    CONSTRAINT canary_in_range CHECK (canary_count >= 0 AND canary_ratio BETWEEN 0 AND 1)
);
CREATE INDEX redrive_open ON redrive_operation (paced_at) WHERE state IN ('CANARY', 'RUNNING');

-- The tasks of an operation, in the order in which they are taken. seq is the
-- task's version after the redrive: by it an undo knows that nothing came after.
CREATE TABLE redrive_item (
    operation_id uuid NOT NULL,
    n integer NOT NULL,
    task_id uuid NOT NULL,
    state redrive_item_state NOT NULL DEFAULT 'WAITING',
    seq integer,
    code text,
    PRIMARY KEY (operation_id, n)
) WITH (fillfactor = 70);

-- +goose Down
DROP TABLE redrive_item, redrive_operation, dead_letter_discard;
DROP TYPE redrive_item_state, redrive_state;
CREATE OR REPLACE VIEW report.throughput_by_hour AS
SELECT
    h.hour, h.type,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'created'), 0)::bigint AS created,
    coalesce(sum(h.n) FILTER (WHERE h.now = 'COMPLETED'), 0)::bigint AS completed,
    coalesce(sum(h.n) FILTER (WHERE h.now IN ('FAILED', 'TIMED_OUT')), 0)::bigint AS failed,
    coalesce(sum(h.n) FILTER (WHERE h.now = 'CANCELLED'), 0)::bigint AS cancelled,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'retry'), 0)::bigint AS retried,
    round((sum(h.run_ms) FILTER (WHERE h.now = 'COMPLETED'))::numeric / nullif(sum(h.n) FILTER (WHERE h.now = 'COMPLETED'), 0), 3) AS average_run_ms
FROM tally_hour h
GROUP BY h.hour, h.type;
DROP VIEW report.dead_letter;
CREATE VIEW report.dead_letter AS
SELECT
    t.task_id, t.workflow_id, t.definition_id, t.type, t.status,
    t.error ->> 'code' AS error_code,
    left(t.error ->> 'message', 200) AS error_message,
    t.attempt AS attempts, t.ended_at AS died_at, t.job_id
FROM river_job j
JOIN task t ON t.task_id = (j.args ->> 'task_id')::uuid AND t.job_id = j.id
WHERE j.queue = 'task-execution-deadletter' AND j.state IN ('available', 'running');
COMMENT ON VIEW report.dead_letter IS 'Tasks that ended for good without success and wait for somebody to look.';
DROP FUNCTION report.failure_fingerprint(text, text, text);
DROP FUNCTION report.message_pattern(text);
