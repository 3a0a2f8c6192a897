-- The counters of failures and crashes equal the attempts since the last redrive.
SELECT
    t.task_id::text AS task,
    format('%s failures, %s crashes; the attempts say %s and %s', t.failures, t.crashes,
        count(*) FILTER (WHERE a.outcome IN ('FAILED', 'TIMED_OUT')), count(*) FILTER (WHERE a.outcome = 'LEASE_EXPIRED')) AS detail
FROM task t
LEFT JOIN (
    SELECT e.task_id, max(e.attempt) AS attempt
    FROM task_event e
    WHERE e.type = 'redriven'
    GROUP BY e.task_id
) redriven ON redriven.task_id = t.task_id
LEFT JOIN task_attempt a ON a.task_id = t.task_id AND a.attempt > coalesce(redriven.attempt, 0)
GROUP BY t.task_id
HAVING t.failures <> count(*) FILTER (WHERE a.outcome IN ('FAILED', 'TIMED_OUT'))
    OR t.crashes <> count(*) FILTER (WHERE a.outcome = 'LEASE_EXPIRED');
