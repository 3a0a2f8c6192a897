-- name: LetterClaim :many
-- Leases dead letters, by priority. Their tasks have ended and stay unchanged: no attempt
-- begins, so the lease is written here and holds only the job. A lease of an earlier
-- attempt may still exist.
WITH free AS MATERIALIZED (
    SELECT j.id
    FROM river_job j
    WHERE j.state = 'available'
        AND j.queue = 'task-execution-deadletter'
        AND j.kind = 'task.deadletter'
        AND j.scheduled_at <= now()
        AND NOT EXISTS (SELECT FROM river_queue q WHERE q.name = 'task-execution-deadletter' AND q.paused_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM maintenance m WHERE m.lane = 'task-execution-deadletter' AND (m.until IS NULL OR m.until > now()))
        AND EXISTS (
            SELECT
            FROM task t
            WHERE t.task_id = job_task(j.args)
                AND t.job_id = j.id
                AND t.status IN ('FAILED', 'TIMED_OUT')
                AND t.tenant_id = @tenant_id::text
                AND (cardinality(@definition_ids::text[]) = 0 OR t.definition_id = ANY (@definition_ids::text[]))
        )
-- All columns of the index, in order: with row policies on the table the planner does not
-- see that the first three are constants, and would sort all waiting jobs.
    ORDER BY j.state, j.queue, j.kind, j.priority, j.scheduled_at, j.id
    LIMIT @most::integer
    FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE river_job j
    SET state = 'running', attempt = j.attempt + 1, attempted_at = now(), attempted_by = ARRAY[@worker::text]
    FROM free
    WHERE j.id = free.id
    RETURNING j.id, job_task(j.args) AS task_id
)
INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, owner, request_id)
SELECT
    t.task_id, claimed.id, t.attempt, 'letter', @visibility_ms::bigint,
    now() + interval '1 millisecond' * @visibility_ms::bigint, @worker::text, @request_id::text
FROM claimed
JOIN task t ON t.task_id = claimed.task_id
ON CONFLICT (task_id) DO UPDATE
SET job_id = excluded.job_id, attempt = excluded.attempt, kind = excluded.kind, visibility_ms = excluded.visibility_ms,
    expires_at = excluded.expires_at, deadline_at = NULL, owner = excluded.owner, invocation_id = NULL,
    request_id = excluded.request_id
RETURNING task_id;

-- name: LetterWaits :one
-- Whether any dead letter, of any tenant, can be leased.
SELECT EXISTS (
    SELECT
    FROM river_job j
    WHERE j.state = 'available' AND j.queue = 'task-execution-deadletter' AND j.kind = 'task.deadletter' AND j.scheduled_at <= now()
) AS waits;

-- name: LetterExpired :many
SELECT l.task_id, l.job_id, l.owner
FROM lease l
WHERE l.kind = 'letter' AND l.expires_at <= now()
ORDER BY l.expires_at
LIMIT 500;

-- name: LetterReturn :many
-- Returns leased dead letters, each with a new job, which invalidates the token of the old
-- job. A dead letter that is not returned by this query had no lease any more.
WITH asked AS (
    SELECT unnest(@task_ids::uuid[]) AS task_id, unnest(@job_ids::bigint[]) AS job_id
),
letter AS MATERIALIZED (
    SELECT t.task_id, t.job_id
    FROM asked
    JOIN task t ON t.task_id = asked.task_id AND t.job_id = asked.job_id AND t.status IN ('FAILED', 'TIMED_OUT')
    WHERE EXISTS (
-- The LIMIT keeps the planner from reading all leases.
        SELECT
        FROM (SELECT h.job_id, h.kind, h.expires_at FROM lease h WHERE h.task_id = asked.task_id LIMIT 1) l
        WHERE l.job_id = asked.job_id AND l.kind = 'letter' AND (NOT @expired::boolean OR l.expires_at <= now())
    )
    ORDER BY t.task_id
    FOR UPDATE OF t
),
ended_job AS (
    UPDATE river_job j
    SET
        state = 'cancelled',
        finalized_at = now(),
        errors = CASE
            WHEN @why::text = '' THEN j.errors
            ELSE array_append(j.errors, jsonb_build_object('at', now(), 'attempt', greatest(j.attempt, 1), 'error', @why::text, 'trace', ''))
        END
    FROM letter
    WHERE j.id = letter.job_id
    RETURNING j.id, j.priority, j.args, j.kind, j.metadata, j.queue, j.tags
),
new_job AS (
    INSERT INTO river_job (state, attempt, max_attempts, scheduled_at, priority, args, kind, metadata, queue, tags)
    SELECT
        'available', 0, 1, now() + interval '1 millisecond' * @delay_ms::bigint, ended_job.priority, ended_job.args,
        ended_job.kind, ended_job.metadata, ended_job.queue, ended_job.tags
    FROM ended_job
    RETURNING id, args
),
ended_lease AS (
    DELETE FROM lease l
    USING letter
    WHERE l.task_id = letter.task_id AND l.job_id = letter.job_id
)
UPDATE task t
SET job_id = new_job.id
FROM new_job
WHERE t.task_id = job_task(new_job.args)
RETURNING t.task_id;
