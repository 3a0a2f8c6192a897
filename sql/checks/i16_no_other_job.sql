-- No task has a live job except the job that the task names.

-- The token of a task that has gone on may be claimed at this moment: the claim is
-- rejected, and ends the job.
SELECT
    t.task_id::text AS task,
    format('job %s is %s; the task is %s, of job %s', j.id, j.state, t.status, t.job_id) AS detail
FROM river_job j
JOIN task t ON t.task_id = job_task(j.args)
WHERE j.kind LIKE 'task.%'
    AND j.state NOT IN ('completed', 'cancelled', 'discarded')
    AND (j.id <> t.job_id OR t.status IN ('COMPLETED', 'CANCELLED', 'ASSIGNED'))
    AND (j.state = 'running' AND j.attempted_at > now() - :'grace'::interval) IS NOT TRUE;
