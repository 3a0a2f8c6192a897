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

-- name: PauseWalkBegin :exec
-- Begins a walk that releases what the resumed pauses hold back, unless one is under way, or one
-- has met locked jobs less than a second ago. Waits for nobody.
UPDATE pause_walk w
SET
    turn = w.turn + 1, queue = '', kind = '', priority = 0, scheduled_at = 'epoch', job_id = 0, locked = 0,
    pauses = ARRAY(
        SELECT p.id
        FROM pause p
        WHERE p.resumed_at IS NOT NULL AND NOT p.released
        ORDER BY p.id
        LIMIT 1000
    )
FROM (
    SELECT o.only_one
    FROM pause_walk o
    WHERE o.pauses = '{}' AND (o.locked = 0 OR o.moved_at < now() - interval '1 second')
    FOR UPDATE SKIP LOCKED
) free
WHERE w.only_one = free.only_one
    AND EXISTS (SELECT FROM pause p WHERE p.resumed_at IS NOT NULL AND NOT p.released);

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
-- The next page of the walk over the jobs that are held back, in the fetching index's order: makes
-- those available that no pause in force holds back. At the end of the walk it notes that the
-- walk's pauses are released, unless it has met jobs that somebody else has locked. No row: another
-- session walks, or there is no walk and the last page was less than rhythm ago.
--
-- One statement, so that no frozen process keeps the others from walking.
WITH seen AS MATERIALIZED (
    SELECT w.turn
    FROM pause_walk w
),
taken AS MATERIALIZED (
    SELECT w.turn, w.queue, w.kind, w.priority, w.scheduled_at, w.job_id, w.pauses, w.locked
    FROM pause_walk w
    WHERE w.pauses <> '{}' OR w.moved_at < now() - make_interval(secs => @rhythm_seconds::float8)
    FOR UPDATE SKIP LOCKED
),
-- A walk that began after this statement's snapshot releases pauses, and jobs, that the
-- statement does not see.
walk AS MATERIALIZED (
    SELECT taken.turn, taken.queue, taken.kind, taken.priority, taken.scheduled_at, taken.job_id, taken.pauses, taken.locked
    FROM taken
    JOIN seen ON seen.turn = taken.turn
),
walked AS MATERIALIZED (
    SELECT j.queue, j.kind, j.priority, j.scheduled_at, j.id, job_task(j.args) AS task_id
    FROM river_job j
    WHERE j.state = 'pending'
        AND (j.queue, j.kind, j.priority, j.scheduled_at, j.id) > (
            (SELECT walk.queue FROM walk), (SELECT walk.kind FROM walk), (SELECT walk.priority FROM walk), (SELECT walk.scheduled_at FROM walk),
            (SELECT walk.job_id FROM walk)
        )
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
),
page AS MATERIALIZED (
    SELECT
        walk.turn, walk.pauses, walk.locked, (SELECT count(*) FROM walked) AS jobs,
        (SELECT count(*) FROM free) - (SELECT count(*) FROM released) AS passed
    FROM walk
),
done AS (
    UPDATE pause p
    SET released = true
    FROM page
    WHERE p.id = ANY (page.pauses) AND page.jobs = 0 AND page.locked = 0 AND p.resumed_at IS NOT NULL
),
moved AS (
    UPDATE pause_walk w
    SET
        turn = w.turn + 1,
        queue = coalesce(last.queue, ''),
        kind = coalesce(last.kind, ''),
        priority = coalesce(last.priority, 0),
        scheduled_at = coalesce(last.scheduled_at, 'epoch'),
        job_id = coalesce(last.id, 0),
        pauses = CASE WHEN page.jobs = 0 THEN '{}' ELSE page.pauses END,
        locked = CASE WHEN page.pauses = '{}' THEN 0 ELSE page.locked + page.passed END,
        moved_at = now()
    FROM page
    LEFT JOIN last ON true
    WHERE w.turn = page.turn
)
SELECT
    (page.pauses <> '{}')::boolean AS releases, (page.jobs = 0)::boolean AS ended,
    coalesce((SELECT array_agg(DISTINCT released.queue) FROM released), '{}')::text[] AS queues
FROM page;
