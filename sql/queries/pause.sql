-- name: PauseBy :exec
-- Says, for the rest of the transaction, who pauses or resumes queues and why: see
-- pause_note_queue.
SELECT set_config('tes.pause_by', @actor::text, true), set_config('tes.pause_reason', @reason::text, true);

-- name: QueuePause :execrows
-- Pauses a queue as River does. One that is paused stays as it is; none: there is no such queue.
UPDATE river_queue q
SET paused_at = coalesce(q.paused_at, now()), updated_at = now()
WHERE q.name = @name;

-- name: QueueResume :execrows
UPDATE river_queue q
SET paused_at = NULL, updated_at = now()
WHERE q.name = @name;

-- name: PausePut :one
-- Pauses a definition or a task. One that is paused comes back as it is.
INSERT INTO pause (scope, tenant_id, name, paused_by, pause_reason)
VALUES (@scope, @tenant_id, @name, @actor, @reason)
ON CONFLICT (scope, name, tenant_id) WHERE resumed_at IS NULL DO UPDATE SET released = pause.released
RETURNING *;

-- name: PauseLock :exec
-- Waits for the statements that hold jobs back, and makes the next ones wait for the end of
-- this transaction: see table pause_lock.
SELECT pause_lock_exclusive();

-- name: PauseEnd :one
-- Resumes a definition or a task. Needs PauseLock in the same transaction, so that the release
-- which follows sees every job that was held back for the pause.
UPDATE pause p
SET resumed_at = now(), resumed_by = @actor::text, resume_reason = @reason::text
WHERE p.scope = @scope AND p.name = @name AND p.tenant_id = @tenant_id AND p.resumed_at IS NULL
RETURNING *;

-- name: PauseLast :one
-- The newest pause of a subject: the one in force, if there is one.
SELECT *
FROM pause p
WHERE p.scope = @scope AND p.name = @name AND p.tenant_id = @tenant_id
ORDER BY p.id DESC
LIMIT 1;

-- name: PauseList :many
-- A page of the pauses that a tenant may see, the newest first: see the policy of table pause.
SELECT *
FROM pause p
WHERE (p.tenant_id = @tenant_id OR (p.tenant_id = '' AND p.scope <> 'task'))
    AND (@resumed_too::boolean OR p.resumed_at IS NULL)
    AND p.id < @before
ORDER BY p.id DESC
LIMIT @page;

-- name: PauseUnreleased :many
-- Resumed pauses for which jobs may be held back still.
SELECT p.id
FROM pause p
WHERE p.resumed_at IS NOT NULL AND NOT p.released
ORDER BY p.id
LIMIT 1000;

-- name: PauseReleaseTask :one
-- PauseRelease for the one job of a task. locked: another session has locked the job.
WITH waits AS MATERIALIZED (
    SELECT j.id
    FROM task t
    JOIN river_job j ON j.id = t.job_id AND (j.state = 'pending') IS TRUE
    WHERE t.task_id = @task_id
        AND NOT EXISTS (SELECT FROM task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS p (id))
),
held AS MATERIALIZED (
    SELECT j.id
    FROM waits
    JOIN river_job j ON j.id = waits.id AND (j.state = 'pending') IS TRUE
    FOR UPDATE OF j SKIP LOCKED
),
released AS (
    UPDATE river_job j
    SET state = 'available', metadata = j.metadata - 'paused'
    FROM held
    WHERE j.id = held.id
    RETURNING j.queue
)
SELECT
    ((SELECT count(*) FROM waits) > (SELECT count(*) FROM released))::boolean AS locked,
    coalesce((SELECT array_agg(released.queue) FROM released), '{}')::text[] AS queues;

-- name: PauseReleased :exec
UPDATE pause p
SET released = true
FROM (SELECT unnest(@ids::bigint[]) AS id) done
WHERE p.id = done.id AND p.resumed_at IS NOT NULL;

-- name: PauseRelease :one
-- Walks a page of the jobs that are held back, in the fetching index's order from a place on,
-- and makes those available that no pause in force holds back. Comes back with the page's last
-- place, with how many jobs somebody else has locked, and with the queues that have work; no
-- row: the walk has come to the end.
WITH walked AS MATERIALIZED (
    SELECT j.queue, j.kind, j.priority, j.scheduled_at, j.id, job_task(j.args) AS task_id
    FROM river_job j
    WHERE j.state = 'pending'
        AND (j.queue, j.kind, j.priority, j.scheduled_at, j.id)
            > (@after_queue::text, @after_kind::text, @after_priority::smallint, @after_at::timestamptz, @after_id::bigint)
    ORDER BY j.queue, j.kind, j.priority, j.scheduled_at, j.id
    LIMIT 1000
),
free AS MATERIALIZED (
    SELECT walked.id
    FROM walked
    LEFT JOIN task t ON t.task_id = walked.task_id
    WHERE walked.kind LIKE 'task.%'
        AND NOT EXISTS (SELECT FROM task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS p (id))
),
held AS MATERIALIZED (
    SELECT j.id
    FROM free
    JOIN river_job j ON j.id = free.id AND (j.state = 'pending') IS TRUE
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
),
released AS (
    UPDATE river_job j
    SET state = 'available', metadata = j.metadata - 'paused'
    FROM held
    WHERE j.id = held.id
    RETURNING j.queue
),
last AS (
    SELECT walked.queue, walked.kind, walked.priority, walked.scheduled_at, walked.id
    FROM walked
    ORDER BY walked.queue DESC, walked.kind DESC, walked.priority DESC, walked.scheduled_at DESC, walked.id DESC
    LIMIT 1
)
SELECT
    last.queue, last.kind, last.priority, last.scheduled_at, last.id,
    ((SELECT count(*) FROM free) - (SELECT count(*) FROM released))::bigint AS locked,
    coalesce((SELECT array_agg(DISTINCT released.queue) FROM released), '{}')::text[] AS queues
FROM last;
