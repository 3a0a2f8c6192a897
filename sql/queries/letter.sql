-- name: LetterClaim :many
-- Leases dead letters, by priority. Their tasks have ended and stay unchanged: no attempt
-- begins, so the lease is written here and holds only the job. A lease of an earlier
-- attempt may still exist.
WITH RECURSIVE known AS (
    SELECT (
        SELECT r.definition_id
        FROM ready r
        WHERE r.place = 'task-execution-deadletter' AND r.tenant_id = @tenant_id::text
        ORDER BY r.place, r.tenant_id, r.definition_id
        LIMIT 1
    ) AS definition_id
    WHERE cardinality(@definition_ids::text[]) = 0
    UNION ALL
    SELECT (
        SELECT r.definition_id
        FROM ready r
        WHERE r.place = 'task-execution-deadletter' AND r.tenant_id = @tenant_id::text AND r.definition_id > known.definition_id
        ORDER BY r.place, r.tenant_id, r.definition_id
        LIMIT 1
    )
    FROM known
    WHERE known.definition_id IS NOT NULL
),
head AS MATERIALIZED (
    SELECT first.job_id, first.rank
    FROM (
        SELECT known.definition_id FROM known WHERE known.definition_id IS NOT NULL
        UNION ALL
        SELECT DISTINCT unnest(@definition_ids::text[])
    ) at
    CROSS JOIN (SELECT true AS urgent UNION ALL SELECT false) flow
    CROSS JOIN LATERAL (
        SELECT r.job_id, r.rank
        FROM ready r
        WHERE r.place = 'task-execution-deadletter' AND r.tenant_id = @tenant_id::text
            AND r.definition_id = at.definition_id AND r.urgent = flow.urgent AND r.due_at <= now()
        ORDER BY r.place, r.tenant_id, r.definition_id, r.urgent, r.rank
        LIMIT @spare::integer
    ) first
    WHERE NOT EXISTS (SELECT FROM river_queue q WHERE q.name = 'task-execution-deadletter' AND q.paused_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM maintenance m WHERE m.lane = 'task-execution-deadletter' AND (m.until IS NULL OR m.until > now()))
),
picked AS MATERIALIZED (
    SELECT locked.job_id
    FROM (SELECT h.job_id, h.rank FROM head h ORDER BY h.rank, h.job_id LIMIT @spare::integer) first
    CROSS JOIN LATERAL (SELECT r.job_id FROM ready r WHERE r.job_id = first.job_id LIMIT 1 FOR UPDATE SKIP LOCKED) locked
    ORDER BY first.rank, first.job_id
    LIMIT @most::integer
),
free AS MATERIALIZED (
    SELECT j.id
    FROM picked
    JOIN river_job j ON j.id = picked.job_id AND (j.state = 'available') IS TRUE
    JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status IN ('FAILED', 'TIMED_OUT') AND t.tenant_id = @tenant_id::text
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
),
stale AS (
    DELETE FROM ready r
    WHERE r.job_id = ANY (ARRAY(
        SELECT picked.job_id
        FROM picked
        WHERE NOT EXISTS (
            SELECT
            FROM river_job j
            JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status IN ('FAILED', 'TIMED_OUT')
            WHERE j.id = picked.job_id AND (j.state = 'available') IS TRUE
        )
    ))
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
-- Whether a dead letter can be leased.
SELECT EXISTS (
    SELECT
    FROM ready r
    WHERE r.place = 'task-execution-deadletter' AND r.tenant_id = @tenant_id::text
        AND (cardinality(@definition_ids::text[]) = 0 OR r.definition_id = ANY (@definition_ids::text[])) AND r.due_at <= now()
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
RETURNING t.task_id, t.tenant_id, t.definition_id;
