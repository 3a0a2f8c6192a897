-- No pending task is claimed by a process that has ended.
-- (at work)

-- A claim of a living process may last for a while: its executor waits for a peer
-- service, or the database was unavailable.
SELECT t.task_id::text AS task, format('claimed by %s at %s', j.attempted_by[1], j.attempted_at) AS detail
FROM task t
JOIN river_job j ON j.id = t.job_id
LEFT JOIN executor x ON x.executor_id = j.attempted_by[1] AND x.seen_at > now() - :'grace'::interval
WHERE t.status = 'PENDING'
    AND j.state = 'running'
    AND j.attempted_at < now() - :'grace'::interval * CASE WHEN x.executor_id IS NULL THEN 1 ELSE 10 END;
