-- The counters agree with the tasks.
SELECT
    '' AS task,
    format('%s %s: %s counted, %s there', type, status, coalesce(counted.n, 0), coalesce(there.n, 0)) AS detail
FROM (
    SELECT c.type, s.status, sum(CASE WHEN c.now = s.status THEN c.n ELSE 0 END - CASE WHEN c.was = s.status THEN c.n ELSE 0 END) AS n
    FROM (
        SELECT tally.type, tally.was, tally.now, tally.n FROM tally
        UNION ALL
        SELECT d.type, d.was, d.now, d.n FROM tally_delta d
    ) c
    CROSS JOIN (SELECT unnest(enum_range(NULL::task_status)) AS status) s
    GROUP BY c.type, s.status
) counted
FULL JOIN (SELECT t.type, t.status, count(*) AS n FROM task t GROUP BY t.type, t.status) there USING (type, status)
WHERE coalesce(counted.n, 0) <> coalesce(there.n, 0);
