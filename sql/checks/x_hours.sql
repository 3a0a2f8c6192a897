-- The counters by hour agree with their totals.
SELECT '' AS task, format('%s %s %s from %s to %s: %s too many, %s ms', c.type, c.lane, c.event, c.was, c.now, sum(c.n), sum(c.run_ms)) AS detail
FROM (
    SELECT t.type, t.lane, t.event, t.was, t.now, t.n, t.run_ms FROM tally t
    UNION ALL
    SELECT h.type, h.lane, h.event, h.was, h.now, -h.n, -h.run_ms FROM tally_hour h
) c
GROUP BY c.type, c.lane, c.event, c.was, c.now
HAVING sum(c.n) <> 0 OR sum(c.run_ms) <> 0;
