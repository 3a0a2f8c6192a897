-- Every history belongs to an existing task.
SELECT e.task_id::text AS task, format('event %s, %s', e.seq, e.type) AS detail
FROM task_event e
WHERE NOT EXISTS (SELECT FROM task t WHERE t.task_id = e.task_id);
