-- name: TaskGet :one
SELECT * FROM task WHERE task_id = @task_id;

-- name: TaskGetMany :many
SELECT * FROM task WHERE task_id = ANY (@task_ids::uuid[]);

-- name: TaskTokens :many
-- Whether the current jobs of these tasks are still the given ones.
SELECT t.task_id, t.job_id, t.status FROM task t WHERE t.task_id = ANY (@task_ids::uuid[]);

-- name: TaskListByWorkflow :many
-- A page of a workflow's tasks in the order of their creation; after is the last id of the
-- previous page, the nil UUID for the first page. The query returns ids, TaskListed the
-- columns. Without statuses or types: all.
SELECT t.task_id
FROM task t
WHERE t.workflow_id = @workflow_id
    AND t.task_id > @after
    AND t.tenant_id = @tenant_id
    AND (coalesce(cardinality(@statuses::text[]), 0) = 0 OR t.status::text = ANY (@statuses::text[]))
    AND (coalesce(cardinality(@types::text[]), 0) = 0 OR t.type::text = ANY (@types::text[]))
ORDER BY t.task_id
LIMIT @page;

-- name: TaskListByUser :many
SELECT t.task_id
FROM task t
WHERE t.assignee_id = @user_id
    AND t.task_id > @after
    AND t.tenant_id = @tenant_id
    AND (coalesce(cardinality(@statuses::text[]), 0) = 0 OR t.status::text = ANY (@statuses::text[]))
    AND (coalesce(cardinality(@types::text[]), 0) = 0 OR t.type::text = ANY (@types::text[]))
ORDER BY t.task_id
LIMIT @page;

-- name: TaskListed :many
-- Tasks in the format of lists: payloads of more than most bytes of text are left out, with
-- their size. A payload stored in more than 32 KiB, compressed or not, has more than 4 KiB
-- of text, because jsonb is at most six times as long: it is not read, and its size is
-- given as 2^31-1. Other payloads are measured as text, because stored ones are compressed:
-- a megabyte may be stored in 8 KiB. OFFSET 0 keeps the planner from measuring twice. A task
-- that meanwhile has another status or type than the list is not returned.
SELECT
    t.task_id, t.created_at, t.started_at, t.ended_at, t.next_retry_at, t.assigned_at, t.due_at, t.version, t.attempt, t.failures,
    t.crashes, t.status, t.type, t.lane, t.revision, t.priority, t.workflow_id, t.definition_id, t.executor, t.correlation_id,
    t.step_id, t.assignee_id, t.assignee_name, t.group_id, t.candidates, t.request_id, t.reference, t.callback_url, t.error,
    (CASE WHEN size.input <= @most::integer THEN t.input END)::jsonb AS input,
    (CASE WHEN size.output <= @most::integer THEN t.output END)::jsonb AS output,
    (CASE WHEN size.context <= @most::integer THEN t.context END)::jsonb AS context,
    size.input::integer AS input_bytes,
    size.output::integer AS output_bytes,
    size.context::integer AS context_bytes
FROM task t
CROSS JOIN LATERAL (
    SELECT
        coalesce(CASE WHEN pg_column_size(t.input) > 32768 THEN 2147483647 ELSE octet_length(t.input::text) END, 0) AS input,
        coalesce(CASE WHEN pg_column_size(t.output) > 32768 THEN 2147483647 ELSE octet_length(t.output::text) END, 0) AS output,
        coalesce(CASE WHEN pg_column_size(t.context) > 32768 THEN 2147483647 ELSE octet_length(t.context::text) END, 0) AS context
    OFFSET 0
) size
WHERE t.task_id = ANY (@task_ids::uuid[])
    AND (coalesce(cardinality(@statuses::text[]), 0) = 0 OR t.status::text = ANY (@statuses::text[]))
    AND (coalesce(cardinality(@types::text[]), 0) = 0 OR t.type::text = ANY (@types::text[]))
ORDER BY t.task_id;

-- name: TaskTenant :one
-- The tenant of a task, for reads that need no other column.
SELECT t.tenant_id FROM task t WHERE t.task_id = @task_id;

-- name: TaskProgress :one
-- The progress of the running attempt, as reported by its worker; null without a report.
SELECT c.progress
FROM task_checkpoint c
WHERE c.task_id = @task_id AND c.attempt = @attempt;

-- name: TaskEvents :many
-- A page of a task's events; after is the last seq of the previous page, 0 for the first
-- page. Payloads of more than most bytes are left out; their size is known without reading
-- them.
SELECT
    e.seq, e.at, e.type, e.attempt, e.was, e.now, e.actor,
    coalesce(CASE WHEN octet_length(e.payload) <= @most::integer THEN e.payload END, '')::text AS payload,
    coalesce(octet_length(e.payload), 0)::integer AS payload_bytes
FROM task_event e
WHERE e.task_id = @task_id AND e.seq > @after
ORDER BY e.seq
LIMIT @page;

-- name: TaskAttempts :many
-- A page of a task's attempts, the running one with its lease. A lease of an earlier attempt
-- may still exist: it has another job. Of the checkpoints only the last is returned.
SELECT
    a.attempt, a.executor_id, a.started_at, a.ended_at, a.outcome, a.error, l.kind, l.owner, l.expires_at, l.deadline_at, c.progress
FROM task_attempt a
LEFT JOIN task_checkpoint c ON c.task_id = a.task_id AND c.attempt = a.attempt
LEFT JOIN lease l ON l.task_id = a.task_id AND l.job_id = a.job_id AND l.attempt = a.attempt AND a.outcome IS NULL
WHERE a.task_id = @task_id AND a.attempt > @after
ORDER BY a.attempt
LIMIT @page;

-- name: TaskWhy :one
-- The reasons why a task does not run, in one snapshot, by the conditions of LaneClaim. ahead
-- is the number of jobs that LaneClaim would take first, counted up to most, and only where
-- the job waits.
SELECT
    t.status, t.attempt, t.job_id, t.definition_id, t.started_at, t.ended_at, t.assigned_at, t.due_at, t.assignee_id, t.group_id,
    coalesce(t.error ->> 'code', '')::text AS error_code,
    now()::timestamptz AS read_at,
    j.state AS job_state, j.queue, j.kind, j.created_at AS queued_at, j.scheduled_at, j.attempted_at, j.attempted_by,
    q.paused_at,
    coalesce(qp.paused_by, '')::text AS queue_paused_by, coalesce(qp.pause_reason, '')::text AS queue_pause_reason,
-- The first pause of the definition or the task; the empty scope without a pause.
    coalesce(held.scope, '')::text AS held_scope, coalesce(held.name, '')::text AS held_name,
    coalesce(held.paused_at, 'epoch')::timestamptz AS held_at, coalesce(held.paused_by, '')::text AS held_by,
    coalesce(held.pause_reason, '')::text AS held_reason,
    m.since AS maintenance_since, m.until AS maintenance_until, coalesce(m.reason, '')::text AS maintenance_reason,
    l.kind AS lease_kind, l.owner, l.expires_at,
    EXISTS (
        SELECT FROM executor x WHERE x.seen_at > now() - make_interval(secs => @silence_seconds::float8)
    ) AS attended,
-- Whether a living process claims this kind of job. Jobs of dead letters and of remote
-- workers are not claimed by processes.
    EXISTS (
        SELECT
        FROM executor x
        WHERE x.seen_at > now() - make_interval(secs => @silence_seconds::float8)
            AND (j.kind = ANY (x.kinds) OR (x.kinds IS NULL AND j.kind IN ('task.automated', 'task.integration', 'task.manual')))
    ) AS claimable,
    t.executor,
    coalesce(asking.seen_at, 'epoch')::timestamptz AS worker_seen_at, -- the epoch: none
    coalesce(asking.seen_at > now() - make_interval(secs => @silence_seconds::float8), false)::boolean AS worker_there,
    ahead.n AS ahead,
    c.progress,
    d.at AS discarded_at, coalesce(d.actor, '')::text AS discarded_by, coalesce(d.reason, '')::text AS discard_reason
FROM task t
LEFT JOIN river_job j ON j.id = t.job_id
LEFT JOIN river_queue q ON q.name = j.queue
LEFT JOIN pause qp ON qp.scope = 'queue' AND qp.name = j.queue AND qp.tenant_id = '' AND qp.resumed_at IS NULL
LEFT JOIN LATERAL (
    SELECT p.scope, p.name, p.paused_at, p.paused_by, p.pause_reason
    FROM task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS c (id)
    JOIN pause p ON p.id = c.id
    ORDER BY p.id
    LIMIT 1
) held ON t.status = 'PENDING'
LEFT JOIN maintenance m ON m.lane::text = j.queue AND (m.until IS NULL OR m.until > now())
LEFT JOIN lease l ON l.task_id = t.task_id AND l.job_id = t.job_id AND l.attempt = t.attempt
LEFT JOIN task_checkpoint c ON c.task_id = t.task_id AND c.attempt = t.attempt AND t.status = 'RUNNING'
LEFT JOIN dead_letter_discard d ON d.task_id = t.task_id
-- When a worker that asks for this work was last seen.
LEFT JOIN LATERAL (
    SELECT max(w.seen_at) AS seen_at
    FROM worker w
    WHERE j.kind = 'task.worker'
        AND w.tenant_id = t.tenant_id
        AND w.queue IN (j.queue, 'task-execution-' || lower(t.type::text))
        AND (w.definition_ids = '{}' OR t.definition_id = ANY (w.definition_ids))
) asking ON true
CROSS JOIN LATERAL (
    SELECT count(*)::integer AS n
    FROM (
        SELECT w.id
        FROM river_job w
        WHERE w.state = 'available'
            AND w.queue = j.queue
            AND w.kind = j.kind
            AND (w.priority, w.scheduled_at, w.id) < (j.priority, j.scheduled_at, j.id)
            AND w.scheduled_at <= now()
            AND j.state = 'available'
            AND t.status = 'PENDING'
        ORDER BY w.priority, w.scheduled_at, w.id
        LIMIT @most::integer
    ) waiting
) ahead
WHERE t.task_id = @task_id AND t.tenant_id = @tenant_id;

-- name: TaskListForUser :many
-- The tasks assigned to a user, and the tasks for which the user is a candidate. Materialized,
-- because the LIMIT would make the planner walk the whole of task in order. The candidates'
-- tasks are those of the reading tenant: see pgpool.ReadAs.
WITH mine AS MATERIALIZED (
    SELECT open.task_id
    FROM task_open_ids(@principals::text[]) AS open (task_id)
    UNION
    (
        SELECT t.task_id
        FROM task t
        WHERE t.assignee_id = @user_id AND t.task_id > @after AND t.tenant_id = @tenant_id
            AND (coalesce(cardinality(@statuses::text[]), 0) = 0 OR t.status::text = ANY (@statuses::text[]))
            AND (coalesce(cardinality(@types::text[]), 0) = 0 OR t.type::text = ANY (@types::text[]))
        ORDER BY t.task_id
        LIMIT @page
    )
)
SELECT t.task_id
FROM mine
JOIN task t ON t.task_id = mine.task_id
WHERE t.task_id > @after AND t.tenant_id = @tenant_id
    AND (coalesce(cardinality(@statuses::text[]), 0) = 0 OR t.status::text = ANY (@statuses::text[]))
    AND (coalesce(cardinality(@types::text[]), 0) = 0 OR t.type::text = ANY (@types::text[]))
ORDER BY t.task_id
LIMIT @page;

-- name: TaskHeld :one
-- A task and the executor of its current attempt; empty if no attempt has begun.
SELECT sqlc.embed(t), coalesce(a.executor_id, '')::text AS held_by
FROM task t
LEFT JOIN task_attempt a ON a.task_id = t.task_id AND a.attempt = t.attempt AND a.outcome IS NULL
WHERE t.task_id = @task_id;

-- name: TaskOpenFor :many
-- The most urgent waiting task for one of these principals. Only the first task of each
-- principal, in the order of the key, is read. A task may wait for several principals.
WITH best AS MATERIALIZED (
    SELECT DISTINCT o.priority, o.due_at, o.created_at, o.task_id
    FROM (SELECT DISTINCT unnest(@principals::text[]) AS name) p
    CROSS JOIN LATERAL (
        SELECT w.priority, w.due_at, w.created_at, w.task_id
        FROM task_open w
        WHERE w.tenant_id = @tenant_id AND w.principal = p.name
        ORDER BY w.priority, w.due_at, w.created_at, w.task_id
        LIMIT @page
    ) o
    ORDER BY o.priority, o.due_at, o.created_at, o.task_id
    LIMIT @page
)
SELECT t.*
FROM best
JOIN task t ON t.task_id = best.task_id
WHERE t.status = 'ASSIGNED'
ORDER BY t.priority, t.due_at, t.created_at, t.task_id;

-- name: TaskLastAssigned :one
-- The assignee before a task was claimed by another user, from the payload of the newest
-- event with an assignee.
SELECT e.payload
FROM task_event e
WHERE e.task_id = @task_id AND e.type = 'assigned'
ORDER BY e.seq DESC
LIMIT 1;
