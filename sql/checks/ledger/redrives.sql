-- How often each task was redriven.
SELECT e.task_id, count(*)
FROM task_event e
WHERE e.type = 'redriven'
GROUP BY e.task_id;
