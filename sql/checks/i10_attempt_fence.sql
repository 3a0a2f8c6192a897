-- An event that ends an attempt names the attempt that was started last.
SELECT
    e.task_id::text AS task,
    format('event %s, %s, is of attempt %s; attempt %s was running', e.seq, e.type, e.attempt, e.running) AS detail
FROM (SELECT v.*, lag(v.attempt) OVER (PARTITION BY v.task_id ORDER BY v.seq) AS running FROM task_event v) e
WHERE e.was = 'RUNNING' AND e.attempt <> e.running;
