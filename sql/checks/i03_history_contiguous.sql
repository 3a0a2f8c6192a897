-- A history is contiguous, and ends at the task's current status.
SELECT
    t.task_id::text AS task,
    format('%s at version %s; %s events from %s to %s', t.status, t.version, count(e.seq), min(e.seq), max(e.seq)) AS detail
FROM task t
LEFT JOIN task_event e ON e.task_id = t.task_id
GROUP BY t.task_id, t.version, t.status
HAVING min(e.seq) IS DISTINCT FROM 1
    OR max(e.seq) IS DISTINCT FROM t.version
    OR count(*) <> t.version
    OR (array_agg(e.now ORDER BY e.seq DESC))[1] <> t.status;
