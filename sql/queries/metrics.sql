-- name: TallyFold :exec
-- Adds the rows of the flushes to the counters. Rows that are locked are left to the session
-- that has locked them.
WITH taken AS (
    DELETE FROM tally_delta d
    WHERE d.id IN (
        SELECT p.id FROM tally_delta p ORDER BY p.id LIMIT 20000 FOR UPDATE SKIP LOCKED
    )
    RETURNING d.at, d.type, d.lane, d.event, d.was, d.now, d.n, d.run_ms
),
hours AS (
    INSERT INTO tally_hour (hour, type, lane, event, was, now, n, run_ms)
    SELECT date_trunc('hour', taken.at, 'UTC'), taken.type, taken.lane, taken.event, taken.was, taken.now, sum(taken.n), sum(taken.run_ms)
    FROM taken
    GROUP BY 1, 2, 3, 4, 5, 6
    ORDER BY 1, 2, 3, 4, 5, 6
    ON CONFLICT ON CONSTRAINT tally_hour_key DO UPDATE
    SET n = tally_hour.n + excluded.n, run_ms = tally_hour.run_ms + excluded.run_ms
)
INSERT INTO tally (type, lane, event, was, now, n, run_ms)
SELECT taken.type, taken.lane, taken.event, taken.was, taken.now, sum(taken.n), sum(taken.run_ms)
FROM taken
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT ON CONSTRAINT tally_key DO UPDATE SET n = tally.n + excluded.n, run_ms = tally.run_ms + excluded.run_ms;

-- name: TallyRead :many
-- All counters since the beginning, in about a hundred rows.
SELECT c.type, c.lane, c.event, c.was, c.now, sum(c.n)::bigint AS n, sum(c.run_ms)::bigint AS run_ms
FROM (
    SELECT t.type, t.lane, t.event, t.was, t.now, t.n, t.run_ms FROM tally t
    UNION ALL
    SELECT d.type, d.lane, d.event, d.was, d.now, d.n, d.run_ms FROM tally_delta d
) c
GROUP BY c.type, c.lane, c.event, c.was, c.now;

-- name: TallyHours :many
SELECT
    h.hour, h.type,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'created'), 0)::bigint AS created,
    coalesce(sum(h.n) FILTER (WHERE h.now = 'COMPLETED'), 0)::bigint AS completed,
    coalesce(sum(h.n) FILTER (WHERE h.now IN ('FAILED', 'TIMED_OUT') AND h.event = 'failed'), 0)::bigint AS failed,
    coalesce(sum(h.n) FILTER (WHERE h.event = 'retry'), 0)::bigint AS retried,
    coalesce(sum(h.run_ms) FILTER (WHERE h.now = 'COMPLETED'), 0)::bigint AS run_ms
FROM tally_hour h
WHERE h.hour >= @since
GROUP BY h.hour, h.type
ORDER BY h.hour, h.type;
