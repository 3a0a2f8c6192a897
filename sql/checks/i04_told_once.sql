-- Every event is in exactly one flush.

-- Ranges and events are sorted together, and the number of open ranges at each event
-- is computed; a join by range would compare each event with each range. Published
-- ranges are kept for a day.
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
