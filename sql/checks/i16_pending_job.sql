-- A pending task has a job that somebody will take, in its lane.
-- (also I2)
SELECT
    t.task_id::text AS task,
    CASE
        WHEN j.id IS NULL THEN format('attempt %s is to come; job %s is not there', t.attempt + 1, t.job_id)
        ELSE format('attempt %s is to come, in %s; job %s is %s in %s: %s', t.attempt + 1, t.lane, t.job_id, j.state, j.queue, j.args)
    END AS detail
FROM task t
LEFT JOIN river_job j ON j.id = t.job_id
WHERE t.status = 'PENDING'
    AND (
        j.state IN ('available', 'scheduled', 'retryable', 'running')
        AND j.queue = t.lane::text
        AND job_task(j.args) = t.task_id
        AND j.args ->> 'attempt' = (t.attempt + 1)::text
    ) IS NOT TRUE;
