-- A pending task has a live job in the queue of its lane.
-- (also I2)

-- The job is held back (pending) only for a pause in force, or for one that was resumed and
-- whose jobs are being released.
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
        (
            j.state IN ('available', 'scheduled', 'retryable', 'running')
            OR (
                j.state = 'pending'
                AND EXISTS (
                    SELECT
                    FROM pause p
                    WHERE NOT p.released
                        AND (
                            (p.scope = 'definition' AND p.name = t.definition_id AND (p.tenant_id = t.tenant_id OR (p.tenant_id = '' AND NOT t.own_definition)))
                            OR (p.scope = 'task' AND p.name = t.task_id::text AND p.tenant_id = t.tenant_id)
                        )
                )
            )
        )
        AND j.queue = t.lane::text
        AND job_task(j.args) = t.task_id
        AND j.args ->> 'attempt' = (t.attempt + 1)::text
    ) IS NOT TRUE;
