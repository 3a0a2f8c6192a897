-- name: LaneClaim :many
-- Claims waiting jobs of one queue and kind, in River's order: by priority, then age. Work
-- may start only after the commit: until then all other statements see the jobs as
-- available. A row without a task (definition_id is null) is an orphaned job; its task_id
-- is the nil UUID if the job names no task. A paused row must not be started: LanePark
-- holds its job back. Whether any definition or task is paused is checked once, so that
-- without pauses the rows cost nothing.
WITH free AS MATERIALIZED (
    SELECT j.id
    FROM river_job j
    WHERE j.state = 'available'
        AND j.queue = @lane::text
        AND j.kind = @kind::text
        AND j.scheduled_at <= now()
        AND NOT EXISTS (SELECT FROM river_queue q WHERE q.name = @lane::text AND q.paused_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM maintenance m WHERE m.lane = CAST(@lane::text AS task_lane) AND (m.until IS NULL OR m.until > now()))
    ORDER BY j.priority, j.scheduled_at, j.id
    LIMIT @slots::integer
    FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE river_job j
    SET
        state = 'running',
        kind = @becomes::text,
        attempt = j.attempt + 1,
        attempted_at = now(),
        attempted_by = ARRAY[@executor_id::text]
    FROM free
    WHERE j.id = free.id
    RETURNING j.id, coalesce(job_task(j.args), '00000000-0000-0000-0000-000000000000')::uuid AS task_id
)
SELECT
    claimed.id AS job_id, claimed.task_id, t.attempt, t.failures, t.crashes, t.revision, t.priority, t.type, t.created_at, t.due_at,
    t.tenant_id, t.workflow_id, t.step_id, t.definition_id, t.own_definition, t.executor, t.correlation_id, t.traceparent,
-- Five hundred long payloads would be half a gigabyte: LanePayloads returns them.
    w.weight,
    (CASE WHEN w.weight <= 8192 THEN t.input END)::jsonb AS input,
    (CASE WHEN w.weight <= 8192 THEN t.context END)::jsonb AS context,
    t.config,
    (CASE
        WHEN (SELECT EXISTS (SELECT FROM pause i WHERE i.resumed_at IS NULL AND i.scope IN ('definition', 'task')))
            THEN EXISTS (SELECT FROM task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS p (id))
        ELSE false
    END)::boolean AS paused
FROM claimed
LEFT JOIN task t ON t.task_id = claimed.task_id AND t.job_id = claimed.id AND t.status = 'PENDING'
CROSS JOIN LATERAL (SELECT (payload_weight(t.input) + payload_weight(t.context))::bigint AS weight OFFSET 0) w; -- weighed once

-- name: LaneKinds :many
-- The kinds of due jobs in a queue, by one index probe for each kind.
SELECT k.kind::text AS kind
FROM (SELECT unnest(@kinds::text[]) AS kind) k
WHERE EXISTS (
    SELECT
    FROM river_job j
    WHERE j.state = 'available' AND j.queue = @lane::text AND j.kind = k.kind AND j.scheduled_at <= now()
);

-- name: LaneRefile :many
-- Returns claimed jobs under other kinds, because the claiming process cannot run them. The
-- jobs have not begun, so their tokens and their positions in the queue stay valid.
WITH wrong AS (
    SELECT unnest(@job_ids::bigint[]) AS id, unnest(@kinds::text[]) AS kind
),
held AS MATERIALIZED (
    SELECT j.id, wrong.kind
    FROM wrong
    JOIN river_job j ON j.id = wrong.id AND (j.state = 'running') IS TRUE AND j.attempted_by = ARRAY[@executor_id::text]
    ORDER BY j.id
    FOR UPDATE OF j
)
UPDATE river_job j
SET state = 'available', kind = held.kind, attempt = j.attempt - 1, attempted_at = NULL, attempted_by = NULL
FROM held
WHERE j.id = held.id
RETURNING j.queue;

-- name: LanePark :many
-- Holds claimed jobs of paused tasks back: River's state for that is pending. The jobs have
-- not begun, so their tokens stay valid. The pauses are read again behind pause_lock, so that a
-- resume waits for this statement, and then sees the jobs; a job whose pause was resumed
-- meanwhile becomes available again. A job that another session has locked stays claimed, and
-- is found by LaneOrphans. kind is the kind under which the jobs waited.
--
-- PostgreSQL locks the tables of a statement before it takes the statement's snapshot: so the
-- statement sees every resume for which it has waited. That is true of a statement of its own,
-- not of a statement inside a function.
WITH shared AS (
    SELECT 1 AS one
    FROM pause_lock
    FOR SHARE
),
asked AS (
    SELECT unnest(@job_ids::bigint[]) AS id
),
held AS MATERIALIZED (
    SELECT j.id, job_task(j.args) AS task_id
    FROM asked
    JOIN river_job j ON j.id = asked.id AND (j.state = 'running') IS TRUE AND j.attempted_by = ARRAY[@executor_id::text]
    WHERE NOT EXISTS (SELECT FROM shared) -- has no rows; without the reference the planner would drop it
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
),
first AS MATERIALIZED (
    SELECT DISTINCT ON (held.id)
        held.id AS job_id,
        jsonb_build_object('paused', jsonb_build_object('by', p.paused_by, 'at', p.paused_at, 'reason', p.pause_reason)) AS note
    FROM held
    JOIN task t ON t.task_id = held.task_id
    CROSS JOIN LATERAL task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS c (id)
    JOIN pause p ON p.id = c.id
    ORDER BY held.id, p.id
)
UPDATE river_job j
SET
    state = CASE WHEN first.job_id IS NULL THEN 'available'::river_job_state ELSE 'pending' END,
    kind = @kind::text,
    attempt = greatest(j.attempt - 1, 0),
    attempted_at = NULL,
    attempted_by = NULL,
    metadata = j.metadata || coalesce(first.note, '{}')
FROM held
LEFT JOIN first ON first.job_id = held.id
WHERE j.id = held.id
RETURNING (j.state = 'pending')::boolean AS parked;

-- name: LanePayloads :many
-- The payloads that LaneClaim leaves out.
SELECT t.task_id, t.input, t.context
FROM task t
WHERE t.task_id = ANY (@task_ids::uuid[]);

-- name: LaneOrphans :many
-- Makes jobs available that were claimed and never started, by a process that has died, or
-- by this process if the answer to a claim was lost. Each job gets a new token. Locked
-- rows are skipped: they are being started at this moment.
WITH lost AS MATERIALIZED (
    SELECT j.id, t.task_id
    FROM river_job j
    JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status = 'PENDING'
    WHERE j.state = 'running'
        AND j.queue = ANY (@lanes::text[])
        AND j.attempted_at < now() - make_interval(secs => @grace_seconds::float8)
        AND CASE
            WHEN j.attempted_by[1] = @executor_id::text THEN j.id <> ALL (@in_flight::bigint[])
            ELSE NOT EXISTS (
                SELECT FROM executor x WHERE x.executor_id = j.attempted_by[1] AND x.seen_at > now() - make_interval(secs => @silence_seconds::float8)
            )
        END
    ORDER BY j.id
    LIMIT 500
    FOR UPDATE OF t, j SKIP LOCKED
),
ended AS (
    UPDATE river_job j
    SET state = 'cancelled', finalized_at = now()
    FROM lost
    WHERE j.id = lost.id
    RETURNING j.id, j.priority, j.args, j.kind, j.metadata, j.queue, j.tags
),
fresh AS (
    INSERT INTO river_job (state, attempt, max_attempts, scheduled_at, priority, args, kind, metadata, queue, tags)
    SELECT 'available', 0, 1, now(), ended.priority, ended.args, ended.kind, ended.metadata, ended.queue, ended.tags
    FROM ended
    RETURNING id, args, queue
)
UPDATE task t
SET job_id = fresh.id
FROM fresh
WHERE t.task_id = job_task(fresh.args)
RETURNING t.task_id, fresh.queue AS lane;

-- name: LaneAge :execrows
-- In River's strict order, LOW jobs starve while any other job waits. So a job gains one
-- priority for each full step of waiting; the priority of the task stays.
UPDATE river_job j
SET priority = j.priority - 1
FROM (
    SELECT r.id
    FROM (SELECT unnest(@priorities::smallint[]) AS priority, unnest(@waits::float8[]) AS seconds) p
    CROSS JOIN LATERAL (
        SELECT w.id
        FROM river_job w
        WHERE w.state = 'available'
            AND w.queue = @lane::text
            AND w.kind = @kind::text
            AND w.priority = p.priority
            AND w.scheduled_at < now() - make_interval(secs => p.seconds)
        ORDER BY w.scheduled_at, w.id
        LIMIT 200
        FOR UPDATE SKIP LOCKED
    ) r
) AS old
WHERE j.id = old.id;

-- name: LaneKeep :exec
-- River deletes queues that were not touched for a day, and their pauses with them.
INSERT INTO river_queue (name, metadata, created_at, updated_at)
SELECT lane.name, '{}', now(), now()
FROM (SELECT unnest(@lanes::text[]) AS name) lane
ON CONFLICT (name) DO UPDATE SET updated_at = now();

-- name: LaneWaiting :many
-- The age of the oldest waiting job of each queue, by one index probe for each kind and each
-- of its priorities. The kinds are found by skipping along the index, because the kinds of
-- Go handlers are not known in advance.
WITH RECURSIVE known AS (
    SELECT l.lane, (
        SELECT j.kind FROM river_job j WHERE j.state = 'available' AND j.queue = l.lane ORDER BY j.kind LIMIT 1
    ) AS kind
    FROM (SELECT unnest(@lanes::text[]) AS lane) l
    UNION ALL
    SELECT known.lane, (
        SELECT j.kind FROM river_job j WHERE j.state = 'available' AND j.queue = known.lane AND j.kind > known.kind ORDER BY j.kind LIMIT 1
    )
    FROM known
    WHERE known.kind IS NOT NULL
)
SELECT known.lane::text AS lane, (extract(epoch FROM now() - min(first.scheduled_at)) * 1000)::bigint AS oldest_ms
FROM known
CROSS JOIN (VALUES (1::smallint), (2::smallint), (3::smallint), (4::smallint)) AS p (priority)
CROSS JOIN LATERAL (
    SELECT j.scheduled_at
    FROM river_job j
    WHERE j.state = 'available' AND j.queue = known.lane AND j.kind = known.kind AND j.priority = p.priority
        AND j.scheduled_at <= now()
    ORDER BY j.scheduled_at
    LIMIT 1
) first
GROUP BY known.lane;

-- name: LaneNotify :exec
-- Wakes the producers of other processes.
SELECT pg_notify('tes_lane', lane.name)
FROM (SELECT unnest(@lanes::text[]) AS name) lane;

-- name: CancelNotify :exec
-- Tells other processes that these attempts ("task job") were cancelled while their executors
-- were running.
SELECT pg_notify('tes_cancel', a.id)
FROM (SELECT unnest(@attempts::text[]) AS id) a;

-- name: JobsFree :exec
-- Makes jobs available that were claimed for a caller with another answer.
UPDATE river_job j
SET state = 'available', attempt = greatest(j.attempt - 1, 0)
FROM (SELECT unnest(@job_ids::bigint[]) AS id) free
WHERE j.id = free.id AND (j.state = 'running') IS TRUE;

-- name: JobsEnd :exec
-- Orphaned jobs: claimed, but their tasks have gone on without them. LaneStale ends orphaned
-- jobs that are locked.
WITH held AS MATERIALIZED (
    SELECT j.id
    FROM (SELECT unnest(@job_ids::bigint[]) AS id) stale
    JOIN river_job j ON j.id = stale.id AND (j.state = 'running') IS TRUE
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE river_job j
SET state = 'cancelled', finalized_at = now()
FROM held
WHERE j.id = held.id;
