-- Every event is in one flush, published or to be published.

-- Ranges and events sorted together: how many ranges are open where an event
-- stands. A join by range would compare each with each. What was published is
-- remembered for a day.
WITH flush AS (
    SELECT o.lo, o.hi FROM outbox o
    UNION ALL
    SELECT p.lo, p.hi FROM outbox_published p
),
point AS (
    SELECT flush.hi AS place, 0 AS kind, -1 AS step, NULL::uuid AS task_id, NULL::integer AS seq, NULL::timestamptz AS at FROM flush
    UNION ALL
    SELECT flush.lo, 1, 1, NULL, NULL, NULL FROM flush
    UNION ALL
    SELECT e.id, 2, 0, e.task_id, e.seq, e.at FROM task_event e
),
told AS (
    SELECT point.*, sum(point.step) OVER (ORDER BY point.place, point.kind ROWS UNBOUNDED PRECEDING) AS times
    FROM point
)
SELECT told.task_id::text AS task, format('event %s is in %s flushes', told.seq, told.times) AS detail
FROM told
WHERE told.kind = 2 AND (told.times > 1 OR (told.times = 0 AND told.at > now() - interval '23 hours'));
