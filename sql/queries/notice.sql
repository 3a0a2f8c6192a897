-- name: DeadlineTask :one
-- The columns of a task that its deadline needs, and the database's time.
SELECT
    t.task_id, t.status, t.type, t.version, t.tenant_id, t.definition_id, t.own_definition, t.revision, t.config, t.priority,
    t.deadline_id,
    t.assignee_id, t.group_id, t.candidates, t.assigned_at, t.due_at, now()::timestamptz AS read_at
FROM task t
WHERE t.task_id = @task_id;

-- name: DeadlineStep :one
-- One step of a deadline, atomically: ends the deadline's job, and inserts the notices to be
-- sent, the escalation, and the next step. Fenced by the job's attempt: a process that was
-- superseded repeats nothing.
WITH ended AS (
    UPDATE river_job j
    SET state = 'completed', finalized_at = now()
    WHERE j.id = @job_id AND j.attempt = @attempt AND (j.state = 'running') IS TRUE
    RETURNING j.id, j.priority, j.tags
),
told AS (
    SELECT
        unnest(@notice_ids::bigint[]) AS notice_id,
        unnest(@whats::text[]) AS what,
        unnest(@user_ids::text[]) AS user_id
),
new_notice AS (
    INSERT INTO notice (notice_id, task_id, deadline_id, percent, what, user_id)
    SELECT told.notice_id, @task_id, @deadline_id, @percent, told.what, told.user_id
    FROM told
    CROSS JOIN ended
),
follow AS (
    SELECT
        told.notice_id AS id, 'notice.send' AS kind, now() AS at,
        jsonb_build_object('task_id', @task_id::uuid, 'notice_id', told.notice_id) AS args
    FROM told
    UNION ALL
    SELECT
        @escalation_job::bigint, 'notice.escalation', now(),
        jsonb_build_object('task_id', @task_id::uuid, 'deadline_id', @deadline_id::bigint)
    WHERE @escalation_job::bigint > 0
    UNION ALL
    SELECT
        @next_job::bigint, 'notice.deadline', @next_at::timestamptz,
        jsonb_build_object('task_id', @task_id::uuid, 'deadline_id', @deadline_id::bigint, 'percent', @next_percent::integer)
    WHERE @next_job::bigint > 0
),
new_job AS (
    INSERT INTO river_job (
        id, state, attempt, max_attempts, created_at, scheduled_at, priority, args, kind, metadata, queue, tags
    )
    SELECT
        follow.id,
-- Jobs due within five seconds do not wait for River's leader to make them available.
        CASE WHEN follow.at <= now() + interval '5 seconds' THEN 'available'::river_job_state ELSE 'scheduled' END,
        0, 32767, now(), follow.at, ended.priority, follow.args, follow.kind, '{}', 'task-notices', ended.tags
    FROM follow
    CROSS JOIN ended
)
SELECT count(*)::integer AS made FROM ended;

-- name: NoticeGet :one
-- A notice with the columns of its task that the message needs.
SELECT
    n.notice_id, n.task_id, n.deadline_id, n.percent, n.what, n.outcome, n.user_id, n.tries,
    t.status, t.type, t.tenant_id, t.workflow_id, t.definition_id, t.own_definition, t.revision, t.config, t.priority, t.due_at,
    t.deadline_id AS deadline_now
FROM notice n
JOIN task t ON t.task_id = n.task_id
WHERE n.notice_id = @notice_id;

-- name: NoticeSettle :exec
-- Stores the outcome of a notice and ends its job. A stored outcome is never changed.
WITH settled AS (
    UPDATE notice n
    SET
        outcome = @outcome,
        channel = nullif(@channel::text, ''),
        detail = nullif(@detail::text, ''),
        tries = n.tries + @tried::integer,
        settled_at = now()
    WHERE n.notice_id = @notice_id AND n.outcome = 'waiting'
    RETURNING n.notice_id
)
UPDATE river_job j
SET state = 'completed', finalized_at = now()
FROM settled
WHERE j.id = settled.notice_id AND (j.state = 'running') IS TRUE;

-- name: NoticeTried :exec
-- No channel accepted the notice: the notice waits for another try.
UPDATE notice n
SET tries = n.tries + 1, detail = @detail::text
WHERE n.notice_id = @notice_id AND n.outcome = 'waiting';

-- name: NoticeForget :execrows
DELETE FROM notice n WHERE n.settled_at < now() - make_interval(secs => @age_seconds::float8);

-- name: AssigneeLoad :many
-- The number of open manual tasks of each user. since is the lowest id of the tasks of the
-- last months: without the limit, every task that a user ever had would be read.
SELECT t.assignee_id::text AS user_id, count(*)::integer AS open
FROM task t
WHERE t.assignee_id = ANY (@user_ids::text[]) AND t.task_id > @since AND t.status IN ('ASSIGNED', 'RUNNING')
GROUP BY t.assignee_id;
