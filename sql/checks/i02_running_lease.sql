-- A running task has a lease, and any other lease belongs to an ended attempt.

-- An end that waited for the lock of its task, while the attempt's start was being
-- committed, does not see the lease; the sweep removes the lease when it has expired.
-- The constraint assigned_to_somebody gives every assigned task an assignee.
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
