-- What was done in each of the last 24 clock hours (UTC), by type of task. Hours in
-- which nothing happened are shown too: a gap is often the answer.
--
--   psql "$TES_DATABASE_URL" -c 'SET ROLE tes_report' -f sql/reports/throughput_24h.sql
--
-- It reads counters, so it costs the same however many tasks there are. A retry
-- is counted when it is scheduled; failed counts tasks that ended, not attempts.

WITH clock AS (
    SELECT generate_series(
        date_trunc('hour', now(), 'UTC') - interval '23 hours',
        date_trunc('hour', now(), 'UTC'),
        interval '1 hour'
    ) AS hour
)
SELECT
    to_char(clock.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS hour_utc,
    coalesce(t.type::text, '-') AS type,
    coalesce(t.created, 0) AS created,
    coalesce(t.completed, 0) AS completed,
    coalesce(t.failed, 0) AS failed,
    coalesce(t.cancelled, 0) AS cancelled,
    coalesce(t.retried, 0) AS retried,
    t.average_run_ms
FROM clock
LEFT JOIN report.throughput_by_hour t ON t.hour = clock.hour
ORDER BY clock.hour, t.type;
