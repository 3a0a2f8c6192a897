-- What remote workers can lease stands in ready, and nothing else does.
-- (also I16)

-- The row is kept by triggers on river_job. A job that no dequeue finds waits until the
-- reconciliation comes by.
SELECT t.task_id::text AS task, format('job %s waits in %s, where no dequeue finds it', j.id, j.queue) AS detail
FROM river_job j
JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id
LEFT JOIN ready r ON r.job_id = j.id
WHERE j.state = 'available'
    AND j.kind IN ('task.worker', 'task.deadletter')
    AND (r.place, r.tenant_id, r.definition_id, r.urgent, r.due_at, r.rank)
        IS DISTINCT FROM (ready_place(j.queue, t.type), t.tenant_id, t.definition_id, j.priority = 1, j.scheduled_at, ready_rank(j.scheduled_at, j.priority))
UNION ALL
SELECT r.task_id::text, format('job %s stands in ready and is %s', r.job_id, coalesce(j.state::text, 'not there'))
FROM ready r
LEFT JOIN river_job j ON j.id = r.job_id
WHERE (j.state = 'available' AND j.kind IN ('task.worker', 'task.deadletter')) IS NOT TRUE;
