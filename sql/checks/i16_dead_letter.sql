-- A task that failed for good has a dead letter, unless the dead letter was discarded.

-- A dead letter that was taken has a lease, whose end puts the dead letter back. A dead
-- letter whose job was ended is about to be discarded.
SELECT
    t.task_id::text AS task,
    CASE WHEN j.id IS NULL THEN format('job %s is not there', t.job_id) ELSE format('job %s is %s in %s: %s', j.id, j.state, j.queue, j.kind) END AS detail
FROM task t
LEFT JOIN river_job j ON j.id = t.job_id
WHERE t.status IN ('FAILED', 'TIMED_OUT')
    AND NOT (t.job_id = 0 AND EXISTS (SELECT FROM dead_letter_discard d WHERE d.task_id = t.task_id))
    AND (
        j.queue = 'task-execution-deadletter'
        AND j.kind = 'task.deadletter'
        AND CASE j.state
            WHEN 'running' THEN EXISTS (SELECT FROM lease l WHERE l.task_id = t.task_id AND l.job_id = t.job_id AND l.kind = 'letter')
            WHEN 'available' THEN true
            WHEN 'scheduled' THEN true
            ELSE j.finalized_at > now() - :'grace'::interval
        END
    ) IS NOT TRUE;
