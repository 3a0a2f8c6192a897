-- A completed task was completed by its last attempt, and no other task has a completed attempt.
SELECT t.task_id::text AS task, format('%s at attempt %s; attempt %s was completed', t.status, t.attempt, coalesce(a.attempt::text, 'none')) AS detail
FROM task t
LEFT JOIN task_attempt a ON a.task_id = t.task_id AND a.outcome = 'COMPLETED'
WHERE a.attempt IS DISTINCT FROM CASE WHEN t.status = 'COMPLETED' THEN t.attempt END;
