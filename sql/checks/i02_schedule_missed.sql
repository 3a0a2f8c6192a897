-- No pending task has been due for longer than the grace.
-- (at work)

-- River's leader makes scheduled jobs available every five seconds, also in paused
-- queues.
SELECT t.task_id::text AS task, format('job %s is %s, due at %s', j.id, j.state, j.scheduled_at) AS detail
FROM task t
JOIN river_job j ON j.id = t.job_id
WHERE t.status = 'PENDING'
    AND j.state IN ('scheduled', 'retryable')
    AND j.scheduled_at < now() - :'grace'::interval;
