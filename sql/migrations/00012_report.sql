-- What DBAs may rely on: these views may gain columns, they do not lose them.
-- Inputs, outputs and contexts are left out on purpose: they are the callers'.

-- +goose Up
CREATE SCHEMA report;
COMMENT ON SCHEMA report IS 'Stable views over tes for reports; read as tes_report.';

CREATE VIEW report.task AS
SELECT
    t.task_id, t.workflow_id, t.step_id, t.definition_id, t.type, t.status,
    (ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'])[t.priority] AS priority,
    t.lane, t.tenant_id, t.correlation_id, t.assignee_id, t.group_id,
    t.attempt AS attempts, t.failures, t.crashes,
    t.error ->> 'code' AS error_code,
    t.created_at, t.started_at, t.ended_at, t.next_retry_at, t.due_at,
    extract(epoch FROM t.ended_at - t.created_at) AS total_seconds
FROM task t;
COMMENT ON VIEW report.task IS 'One row a task, without its payloads.';

CREATE VIEW report.attempt AS
SELECT
    a.task_id, a.attempt, t.workflow_id, t.definition_id, t.type, a.executor_id, a.outcome,
    a.error ->> 'code' AS error_code,
    a.started_at, a.ended_at,
    extract(epoch FROM a.ended_at - a.started_at) AS run_seconds
FROM task_attempt a
JOIN task t ON t.task_id = a.task_id;
COMMENT ON VIEW report.attempt IS 'One row an attempt: who ran it, how long, how it ended.';

CREATE VIEW report.queue AS
SELECT
    q.name AS lane,
    (ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'])[j.priority] AS priority,
    coalesce(j.waiting, 0) AS waiting,
    coalesce(j.scheduled, 0) AS scheduled,
    coalesce(j.running, 0) AS running,
    coalesce(extract(epoch FROM now() - j.oldest), 0) AS oldest_seconds,
    q.paused_at
FROM river_queue q
LEFT JOIN (
    SELECT
        r.queue, r.priority,
        count(*) FILTER (WHERE r.state = 'available' AND r.scheduled_at <= now()) AS waiting,
        count(*) FILTER (WHERE r.state IN ('scheduled', 'retryable') OR (r.state = 'available' AND r.scheduled_at > now())) AS scheduled,
        count(*) FILTER (WHERE r.state = 'running') AS running,
        min(r.scheduled_at) FILTER (WHERE r.state = 'available' AND r.scheduled_at <= now()) AS oldest
    FROM river_job r
    WHERE r.state IN ('available', 'pending', 'retryable', 'running', 'scheduled')
    GROUP BY r.queue, r.priority
) j ON j.queue = q.name
WHERE q.name LIKE 'task-execution-%';
COMMENT ON VIEW report.queue IS 'Depth and age of each lane by priority. Counts every waiting job: seconds at millions.';

CREATE VIEW report.throughput_by_hour AS
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
COMMENT ON VIEW report.throughput_by_hour IS 'What happened in each hour (UTC), by type; at most a few seconds behind.';

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

-- +goose StatementBegin
CREATE FUNCTION report.event_id(task_id uuid, seq integer) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- outbox.EventID says the same in Go: UUID version 8 over the SHA-256 of both.
    SELECT encode(
        set_byte(
            set_byte(substring(h.sum FROM 1 FOR 16), 6, (get_byte(h.sum, 6) & 15) | 128),
            8, (get_byte(h.sum, 8) & 63) | 128
        ), 'hex')::uuid
    FROM (SELECT sha256(uuid_send(task_id) || int4send(seq)) AS sum) h
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION report.event_id IS 'The id under which an event is told on the bus.';

CREATE VIEW report.event AS
SELECT
    e.task_id, e.seq, e.type AS move,
    -- Releases and redrives are kept here and not told on the bus.
    CASE WHEN e.type NOT IN ('released', 'redriven') THEN report.event_id(e.task_id, e.seq) END AS event_id,
    CASE e.type
        WHEN 'assigned' THEN 'task.manual.assigned'
        WHEN 'released' THEN NULL
        WHEN 'redriven' THEN NULL
        ELSE 'task.' || e.type
    END AS subject,
    e.was, e.now, e.attempt, e.actor, e.at,
    t.workflow_id, t.type, t.correlation_id, a.executor_id, a.error ->> 'code' AS error_code,
    e.id < coalesce((SELECT min(o.lo) FROM outbox o), e.id + 1) AS surely_published
FROM task_event e
JOIN task t ON t.task_id = e.task_id
LEFT JOIN task_attempt a ON a.task_id = e.task_id AND a.attempt = e.attempt;
COMMENT ON VIEW report.event IS 'The audit trail: every move of every task, in order of seq.';

-- +goose StatementBegin
DO $$
DECLARE
    col record;
    words constant jsonb := '{
        "task_id": "the task (UUIDv7, so it sorts by creation)",
        "workflow_id": "the workflow it belongs to",
        "step_id": "the workflow''s step, if the orchestrator named it",
        "definition_id": "the task definition",
        "type": "AUTOMATED, INTEGRATION or MANUAL",
        "status": "where the task stands",
        "priority": "CRITICAL, HIGH, MEDIUM or LOW",
        "lane": "the queue it is or was last in",
        "tenant_id": "the tenant, empty if none",
        "correlation_id": "the orchestrator''s correlation id",
        "assignee_id": "the person it is assigned to",
        "group_id": "the group that may claim it",
        "attempts": "attempts begun",
        "attempt": "which attempt, from 1",
        "failures": "attempts that reported a failure",
        "crashes": "attempts whose lease expired",
        "error_code": "code of the last error",
        "error_message": "message of the last error, cut at 200 characters",
        "created_at": "when the task was accepted",
        "started_at": "when the attempt began",
        "ended_at": "when it ended",
        "next_retry_at": "when the next attempt is due",
        "due_at": "when a person should be done",
        "total_seconds": "from acceptance to the end",
        "executor_id": "the process, worker or person",
        "outcome": "how the attempt ended; null while it runs",
        "run_seconds": "how long the attempt took",
        "waiting": "jobs that could be taken now",
        "scheduled": "jobs with a later time",
        "running": "jobs taken",
        "oldest_seconds": "how long the oldest has waited",
        "paused_at": "since when the lane is paused",
        "hour": "start of the hour, UTC",
        "created": "tasks accepted",
        "completed": "tasks that ended well",
        "failed": "tasks that failed or timed out for good",
        "cancelled": "tasks cancelled",
        "retried": "retries scheduled",
        "average_run_ms": "mean time of the attempts that completed, in ms",
        "died_at": "when the task ended",
        "job_id": "its token in river_job",
        "seq": "number of the move within the task, from 1",
        "move": "what happened",
        "event_id": "id of the event on the bus; null if the move is not told",
        "subject": "subject on the bus; null if the move is not told",
        "was": "status before the move; null for the first",
        "now": "status after the move",
        "actor": "who moved it",
        "at": "when",
        "surely_published": "true once nothing as old waits in the outbox"
    }';
BEGIN
    FOR col IN
        SELECT c.table_name, c.column_name FROM information_schema.columns c WHERE c.table_schema = 'report'
    LOOP
        EXECUTE format('COMMENT ON COLUMN report.%I.%I IS %L', col.table_name, col.column_name, words ->> col.column_name);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP SCHEMA report CASCADE;
