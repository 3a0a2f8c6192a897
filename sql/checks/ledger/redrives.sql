-- How often a task has begun again after its end.
SELECT e.task_id, count(*)
FROM task_event e
WHERE e.type = 'redriven'
GROUP BY e.task_id;
