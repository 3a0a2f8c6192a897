-- The times of a task are in order.
SELECT t.task_id::text AS task, format('attempt %s: %s to %s; task: %s to %s', a.attempt, a.started_at, a.ended_at, t.started_at, t.ended_at) AS detail
FROM task t
JOIN task_attempt a ON a.task_id = t.task_id
WHERE a.ended_at < a.started_at OR t.ended_at < t.started_at;
