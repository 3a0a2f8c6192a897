-- Attempts are numbered without gaps, and only the running attempt is open.
SELECT
    t.task_id::text AS task,
    format('%s at attempt %s; %s attempts, the last is %s, open are %s',
        t.status, t.attempt, count(a.attempt), max(a.attempt), count(*) FILTER (WHERE a.attempt IS NOT NULL AND a.outcome IS NULL)) AS detail
FROM task t
LEFT JOIN task_attempt a ON a.task_id = t.task_id
GROUP BY t.task_id
HAVING count(a.attempt) <> t.attempt
    OR coalesce(max(a.attempt), 0) <> t.attempt
    OR count(*) FILTER (WHERE a.attempt IS NOT NULL AND a.outcome IS NULL) <> CASE WHEN t.status = 'RUNNING' THEN 1 ELSE 0 END;
