-- The events of a task are in the outbox in the order of its history.

-- Relays publish flush by flush, in the order of the flushes' ids, and within a flush
-- in the order of the events' ids. Between the begins of two ranges lies one range.
WITH flush AS (
    SELECT o.id, o.lo, o.hi FROM outbox o
    UNION ALL
    SELECT p.id, p.lo, p.hi FROM outbox_published p
),
point AS (
    SELECT flush.hi AS place, 0 AS kind, -1 AS step, NULL::bigint AS flush, NULL::uuid AS task_id, NULL::integer AS seq FROM flush
    UNION ALL
    SELECT flush.lo, 1, 1, flush.id, NULL, NULL FROM flush
    UNION ALL
    SELECT e.id, 2, 0, NULL, e.task_id, e.seq FROM task_event e
),
told AS (
    SELECT
        point.*,
        sum(point.step) OVER along AS times,
        count(point.flush) OVER along AS stretch
    FROM point
    WINDOW along AS (ORDER BY point.place, point.kind ROWS UNBOUNDED PRECEDING)
),
placed AS (
    SELECT told.kind, told.times, told.place, told.task_id, told.seq, max(told.flush) OVER (PARTITION BY told.stretch) AS flush
    FROM told
),
paired AS (
    SELECT
        placed.*,
        lag(placed.flush) OVER history AS flush_before,
        lag(placed.place) OVER history AS place_before
    FROM placed
    WHERE placed.kind = 2 AND placed.times = 1
    WINDOW history AS (PARTITION BY placed.task_id ORDER BY placed.seq)
)
SELECT
    paired.task_id::text AS task,
    format('event %s is %s of flush %s, the one before it %s of flush %s',
        paired.seq, paired.place, paired.flush, paired.place_before, paired.flush_before) AS detail
FROM paired
WHERE (paired.flush, paired.place) < (paired.flush_before, paired.place_before);
