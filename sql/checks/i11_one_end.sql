-- An ended run has exactly one terminal event, and a run under way has none.

-- A redrive begins a new run of the same task.
SELECT
    t.task_id::text AS task,
    format('%s, with %s terminal events and %s redrives', t.status, ends.n, ends.redrives) AS detail
FROM task t
JOIN (
    SELECT
        e.task_id,
        count(*) FILTER (WHERE e.now IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT')) AS n,
        count(*) FILTER (WHERE e.type = 'redriven') AS redrives
    FROM task_event e
    GROUP BY e.task_id
) ends ON ends.task_id = t.task_id
WHERE ends.n <> ends.redrives + CASE WHEN t.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT') THEN 1 ELSE 0 END;
