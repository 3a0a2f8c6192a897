-- name: LeaseExtend :many
-- The heartbeat of a whole process: extends leases from now, at most to their deadlines. A
-- lease that is not returned is lost, or locked by another session: LeasesOf tells which.
-- Locked leases are skipped, because waiting for one of them would let all others expire.
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
-- Which of these leases still exist.
SELECT l.job_id
FROM (SELECT unnest(@task_ids::uuid[]) AS task_id, unnest(@job_ids::bigint[]) AS job_id) run
JOIN lease l ON l.task_id = run.task_id AND l.job_id = run.job_id;

-- name: LeaseAwait :execrows
-- The work was handed to another system: the lease becomes the wait for the answer, ends
-- at the attempt's deadline, and occupies no job.
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
-- Deletes expired leases of ended attempts. Such a lease remains if the end and the start of
-- the attempt were committed concurrently. LetterReturn deletes the leases of dead letters.
-- Locked leases are skipped until the next sweep.
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
-- Records the request of a dequeue under its key; earlier requests with the key may no longer
-- take work. Waits for the commit of a request that is just ending.
INSERT INTO dequeue_turn (tenant_id, owner, request_id, turn)
VALUES (@tenant_id, @owner, @request_id, @turn)
ON CONFLICT (tenant_id, owner, request_id) DO UPDATE SET turn = excluded.turn, at = now();

-- name: LeaseTurnsEnd :many
-- Which of these requests are still the latest of their keys, checked in the transaction
-- that commits their leases.
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
-- The same for dead letters. The request goes on, because tasks follow.
UPDATE dequeue_turn r
SET at = now()
WHERE r.tenant_id = @tenant_id AND r.owner = @owner AND r.request_id = @request_id AND r.turn = @turn;

-- name: LeaseTurnsForget :exec
-- Deletes requests that never ended, because their processes died.
DELETE FROM dequeue_turn r
WHERE r.at < now() - interval '10 minutes';

-- name: LeaseGet :one
SELECT * FROM lease WHERE task_id = @task_id;

-- name: ExecutorSeen :one
-- Null kinds leave the column unchanged: a probe of the database does not know the kinds.
INSERT INTO executor (executor_id, kinds)
VALUES (@executor_id, @kinds::text[])
ON CONFLICT (executor_id) DO UPDATE SET seen_at = now(), kinds = coalesce(excluded.kinds, executor.kinds)
RETURNING clock_timestamp()::timestamptz AS now;

-- name: Now :one
SELECT clock_timestamp()::timestamptz AS now;

-- name: ExecutorGone :exec
DELETE FROM executor
WHERE executor_id = @executor_id OR seen_at < now() - interval '1 day';
