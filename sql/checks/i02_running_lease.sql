-- A running task has a lease, and any other lease is of an attempt that has ended.

-- An end that waited for its task's lock beside the beginning does not see the
-- lease; the sweep does, once it has run out. That an assigned task has somebody to do
-- it is held by a constraint, assigned_to_somebody.
SELECT
    coalesce(t.task_id, l.task_id)::text AS task,
    format('%s, attempt %s, job %s; lease of attempt %s, job %s', t.status, t.attempt, t.job_id, l.attempt, l.job_id) AS detail
FROM task t
FULL JOIN lease l ON l.task_id = t.task_id
LEFT JOIN task_attempt a ON a.task_id = l.task_id AND a.attempt = l.attempt
WHERE CASE
    WHEN t.status = 'RUNNING' THEN (l.attempt, l.job_id) IS DISTINCT FROM (t.attempt, t.job_id)
    ELSE l.attempt IS NOT NULL AND a.outcome IS NULL
END;
