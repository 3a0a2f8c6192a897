-- What tes bench counts after a timed part. Its databases are its own: these statements read
-- whole tables, and no service runs them.

-- name: CountFinished :one
SELECT
    (SELECT count(*) FROM task t WHERE t.status = 'COMPLETED')::bigint AS tasks,
    (SELECT count(*) FROM task_attempt a WHERE a.outcome = 'COMPLETED')::bigint AS attempts,
    (SELECT count(*) FROM task_event)::bigint AS events,
    (SELECT count(*) FROM river_job j WHERE j.state = 'completed')::bigint AS jobs;

-- name: CountCompleted :one
SELECT
    (SELECT count(*) FROM task t WHERE t.status = 'COMPLETED')::bigint AS completed,
    (SELECT count(*) FROM outbox)::bigint AS waiting;

-- name: CountLeft :one
SELECT
    count(*) FILTER (WHERE t.status = 'PENDING')::bigint AS pending,
    count(*) FILTER (WHERE t.status NOT IN ('PENDING', 'COMPLETED'))::bigint AS unfinished
FROM task t;

-- name: CountCompletedJobs :one
-- In the bare River client's database, which has River's stock schema.
SELECT count(*)::bigint FROM river_job j WHERE j.state = 'completed';

-- name: CountOutbox :one
SELECT count(*)::bigint FROM outbox;

-- name: OutboxEmpty :one
SELECT (NOT EXISTS (SELECT FROM outbox))::boolean AS is_empty;

-- name: ForgetStream :exec
-- The next relay takes the stream of its bus for the first one.
DELETE FROM outbox_stream;
