-- name: SignalList :many
-- Changes to jobs made outside of tes, each with its task if the job is still the task's
-- current job.
SELECT
    s.id, s.what, s.by_role, s.job_id, t.task_id, t.tenant_id, t.status, t.attempt, t.type, t.definition_id,
    t.own_definition, t.revision, t.executor, t.config, t.failures, t.crashes, t.lane, t.started_at, t.traceparent
FROM (SELECT * FROM job_signal ORDER BY job_signal.id LIMIT 500) s
LEFT JOIN task t ON t.task_id = s.task_id AND t.job_id = s.job_id
ORDER BY s.id;

-- name: SignalDone :exec
DELETE FROM job_signal s
USING (SELECT unnest(@ids::bigint[]) AS id) done
WHERE s.id = done.id;

-- name: TaskAdrift :many
-- Of a page of all tasks: waiting tasks and dead letters whose job is missing, has ended, or
-- names another task. The triggers report nearly all such changes at once; this query finds
-- the changes that triggers cannot see.
WITH page AS MATERIALIZED (
    SELECT
        t.task_id, t.job_id, t.status, t.type, t.tenant_id, t.definition_id, t.own_definition, t.revision, t.executor, t.config,
        t.lane
    FROM task t
    WHERE t.task_id > @after
    ORDER BY t.task_id
    LIMIT @page
),
last AS (
    SELECT page.task_id
    FROM page
    ORDER BY page.task_id DESC
    LIMIT 1
)
SELECT
    last.task_id AS page_end, page.task_id, page.job_id, page.type, page.tenant_id, page.definition_id, page.own_definition,
    page.revision, page.executor, page.config, page.lane
FROM last
LEFT JOIN page ON page.status IN ('PENDING', 'FAILED', 'TIMED_OUT')
    AND page.job_id <> 0 -- a dead letter that was laid aside
    AND NOT EXISTS (
        SELECT FROM river_job j
        WHERE j.id = page.job_id AND j.state NOT IN ('completed', 'cancelled', 'discarded') AND job_task(j.args) = page.task_id
    )
-- Intended changes are about to be handled.
    AND NOT EXISTS (SELECT FROM job_signal s WHERE s.job_id = page.job_id);

-- name: LaneRequeue :many
-- A new token for each task or dead letter that waits without one. An existing job that does
-- not name its task, because its args were changed, is ended and returned as broken_job.
WITH lost AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@job_ids::bigint[]) AS job_id,
        unnest(@kinds::text[]) AS kind,
        unnest(@timeouts::bigint[]) AS timeout_ms
),
held AS MATERIALIZED (
    SELECT t.task_id, t.job_id, t.attempt, t.priority, t.lane, t.next_retry_at, t.correlation_id, t.traceparent, lost.kind, lost.timeout_ms
    FROM lost
    JOIN task t ON t.task_id = lost.task_id AND t.job_id = lost.job_id AND t.status IN ('PENDING', 'FAILED', 'TIMED_OUT')
    WHERE NOT EXISTS (
        SELECT FROM river_job j
        WHERE j.id = t.job_id AND j.state NOT IN ('completed', 'cancelled', 'discarded') AND job_task(j.args) = t.task_id
    )
    AND NOT EXISTS (SELECT FROM job_signal s WHERE s.job_id = t.job_id AND s.what <> 'discarded')
    FOR UPDATE OF t SKIP LOCKED
),
broken AS (
    UPDATE river_job j
    SET state = 'cancelled', finalized_at = now()
    FROM held
    WHERE j.id = held.job_id AND (j.state IN ('available', 'pending', 'retryable', 'running', 'scheduled')) IS TRUE
    RETURNING j.id, held.task_id
),
fresh AS (
    INSERT INTO river_job (state, attempt, max_attempts, scheduled_at, priority, args, kind, metadata, queue, tags)
    SELECT
        CASE WHEN held.next_retry_at > now() + interval '5 seconds' THEN 'scheduled'::river_job_state ELSE 'available' END,
        0, 1, coalesce(held.next_retry_at, now()), held.priority,
        jsonb_build_object('task_id', held.task_id, 'attempt', held.attempt + 1, 'timeout_ms', held.timeout_ms),
        held.kind, jsonb_strip_nulls(jsonb_build_object('correlationId', held.correlation_id, 'traceparent', held.traceparent)),
        held.lane::text,
        ARRAY['task-' || held.task_id::text]
    FROM held
    RETURNING id, args, queue
)
UPDATE task t
SET job_id = fresh.id
FROM fresh
LEFT JOIN broken ON broken.task_id = job_task(fresh.args)
WHERE t.task_id = job_task(fresh.args)
RETURNING t.task_id, fresh.queue AS lane, coalesce(broken.id, 0)::bigint AS broken_job;

-- name: ReadyRepair :many
-- Of the tasks of a reconciled page: puts jobs into ready that wait for remote workers and do
-- not stand there. Triggers do so at once; this finds what no trigger saw.
INSERT INTO ready (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
SELECT
    j.id, t.task_id, ready_place(j.queue, t.type), t.tenant_id, t.definition_id, j.priority = 1, j.scheduled_at,
    ready_rank(j.scheduled_at, j.priority)
FROM (
    SELECT p.task_id, p.job_id, p.status, p.type, p.tenant_id, p.definition_id
    FROM task p
    WHERE p.task_id > @after AND p.task_id <= @upto
    ORDER BY p.task_id
) t
JOIN river_job j ON j.id = t.job_id AND (j.state = 'available') IS TRUE AND job_task(j.args) = t.task_id
WHERE t.status IN ('PENDING', 'FAILED', 'TIMED_OUT')
    AND j.kind IN ('task.worker', 'task.deadletter')
    AND (SELECT r.job_id FROM ready r WHERE r.job_id = j.id) IS NULL
-- Whoever claims the job at this moment holds its row, and no row may come after it.
FOR SHARE OF j SKIP LOCKED
ON CONFLICT (job_id) DO NOTHING
RETURNING job_id;

-- name: LaneStale :execrows
-- Running tokens without a task: the task has gone on with another token, or is deleted.
-- Younger ones belong to claims that are just beginning.
WITH stale AS MATERIALIZED (
    SELECT j.id
    FROM river_job j
    WHERE j.state = 'running'
        AND j.queue = ANY (@lanes::text[])
        AND j.kind LIKE 'task.%'
        AND j.attempted_at < now() - make_interval(secs => @grace_seconds::float8)
        AND NOT EXISTS (
            SELECT FROM task t
            WHERE t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status IN ('PENDING', 'RUNNING')
        )
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE river_job j
SET state = 'cancelled', finalized_at = now()
FROM stale
WHERE j.id = stale.id;

-- name: JobTasks :many
-- The tasks of these jobs. current: the job is still the task's current job.
SELECT
    j.id AS job_id, j.kind, t.task_id, t.tenant_id, t.status, (t.job_id = j.id)::boolean AS current
FROM river_job j
JOIN task t ON t.task_id = job_task(j.args)
WHERE j.id = ANY (@job_ids::bigint[]) AND j.kind LIKE 'task.%';
