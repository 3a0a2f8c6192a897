-- name: LeaseExtend :many
-- The heartbeat of a whole process: from now, never past the deadline. What does
-- not come back is lost, or locked by somebody else: LeasesOf tells them apart. Were
-- it waited for, one locked lease would let all others of the process run out.
WITH run AS (
    SELECT unnest(@task_ids::uuid[]) AS task_id, unnest(@job_ids::bigint[]) AS job_id
),
held AS MATERIALIZED (
    SELECT l.task_id, l.job_id
    FROM run
    JOIN lease l ON l.task_id = run.task_id AND l.job_id = run.job_id AND l.kind = 'process' AND l.owner = @owner::text
    ORDER BY l.job_id
    FOR UPDATE OF l SKIP LOCKED
)
UPDATE lease l
SET expires_at = least(now() + make_interval(secs => l.visibility_ms / 1000.0), l.deadline_at)
FROM held
WHERE l.task_id = held.task_id AND l.job_id = held.job_id
RETURNING l.job_id;

-- name: LeasesOf :many
-- Which of these leases are there still.
SELECT l.job_id
FROM (SELECT unnest(@task_ids::uuid[]) AS task_id, unnest(@job_ids::bigint[]) AS job_id) run
JOIN lease l ON l.task_id = run.task_id AND l.job_id = run.job_id;

-- name: LeaseAwait :execrows
-- The work went to another system: the lease becomes the wait for its answer,
-- ends with the attempt's deadline, and holds no job.
WITH waiting AS (
    UPDATE lease l
    SET kind = 'response', expires_at = l.deadline_at, invocation_id = @invocation_id
    WHERE l.task_id = @task_id AND l.job_id = @job_id AND l.attempt = @attempt
    RETURNING l.job_id
)
UPDATE river_job j
SET state = 'completed', finalized_at = now()
FROM waiting
WHERE j.id = waiting.job_id AND (j.state = 'running') IS TRUE;

-- name: LeaseExpired :many
SELECT
    l.task_id, l.job_id, l.attempt, l.kind, l.owner,
    (l.deadline_at IS NOT NULL AND l.deadline_at <= now())::boolean AS timed_out,
    t.type, t.lane, t.tenant_id, t.definition_id, t.own_definition, t.revision, t.executor, t.config, t.failures, t.crashes,
    t.started_at, t.traceparent
FROM lease l
JOIN task t ON t.task_id = l.task_id AND t.job_id = l.job_id AND t.attempt = l.attempt AND t.status = 'RUNNING'
WHERE l.expires_at <= now()
ORDER BY l.expires_at
LIMIT 500;

-- name: LeaseSweep :execrows
-- Expired leases of attempts that are over: their end was committed side by side
-- with their beginning, and did not see them. A dead letter's goes with its return. One
-- that somebody has locked is left for the next look.
WITH over AS MATERIALIZED (
    SELECT l.task_id
    FROM lease l
    WHERE l.expires_at <= now()
        AND NOT EXISTS (
            SELECT FROM task t
            WHERE t.task_id = l.task_id AND t.job_id = l.job_id AND t.attempt = l.attempt
                AND (t.status = 'RUNNING' OR (l.kind = 'letter' AND t.status IN ('FAILED', 'TIMED_OUT')))
        )
    FOR UPDATE OF l SKIP LOCKED
)
DELETE FROM lease l
USING over
WHERE l.task_id = over.task_id;

-- name: LeaseTurn :exec
-- This call of a dequeue may take, and none that wrote its turn before. Waits for the commit
-- of one that has just ended its own.
INSERT INTO dequeue_turn (tenant_id, owner, request_id, turn)
VALUES (@tenant_id, @owner, @request_id, @turn)
ON CONFLICT (tenant_id, owner, request_id) DO UPDATE SET turn = excluded.turn, at = now();

-- name: LeaseTurnsEnd :many
-- Which of these turns are nobody else's, in the transaction in which their leases come.
DELETE FROM dequeue_turn r
USING (
    SELECT
        unnest(@tenant_ids::text[]) AS tenant_id,
        unnest(@owners::text[]) AS owner,
        unnest(@request_ids::text[]) AS request_id,
        unnest(@turns::bigint[]) AS turn
) mine
WHERE r.tenant_id = mine.tenant_id AND r.owner = mine.owner AND r.request_id = mine.request_id AND r.turn = mine.turn
RETURNING r.turn;

-- name: LeaseTurnHold :execrows
-- The same for dead letters, with which the turn does not end: tasks come behind them.
UPDATE dequeue_turn r
SET at = now()
WHERE r.tenant_id = @tenant_id AND r.owner = @owner AND r.request_id = @request_id AND r.turn = @turn;

-- name: LeaseTurnsForget :exec
-- Turns of calls that were never ended: their processes are gone.
DELETE FROM dequeue_turn r
WHERE r.at < now() - interval '10 minutes';

-- name: LeaseGet :one
SELECT * FROM lease WHERE task_id = @task_id;

-- name: ExecutorSeen :one
-- Kinds that are null stay as they are: a probe of the database does not know them.
INSERT INTO executor (executor_id, kinds)
VALUES (@executor_id, @kinds::text[])
ON CONFLICT (executor_id) DO UPDATE SET seen_at = now(), kinds = coalesce(excluded.kinds, executor.kinds)
RETURNING clock_timestamp()::timestamptz AS now;

-- name: Now :one
SELECT clock_timestamp()::timestamptz AS now;

-- name: ExecutorGone :exec
DELETE FROM executor
WHERE executor_id = @executor_id OR seen_at < now() - interval '1 day';
