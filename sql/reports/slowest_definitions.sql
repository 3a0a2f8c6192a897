-- Which kinds of task take longest: the attempts that completed, of tasks accepted
-- in the last so many hours.
--
--   psql "$TES_DATABASE_URL" -c 'SET ROLE tes_report' -v hours=6 -f sql/reports/slowest_definitions.sql
--
-- Without -v hours it looks back one day.

\if :{?hours}
\else
    \set hours 24
\endif

-- A task's id begins with the millisecond of its creation (UUIDv7), so the oldest
-- id of interest can be made from the clock, and the primary key finds the rest.
WITH oldest AS (
    SELECT (
        lpad(to_hex((extract(epoch FROM now() - make_interval(hours => :hours)) * 1000)::bigint), 12, '0')
        || '00000000000000000000'
    )::uuid AS task_id
)
SELECT
    a.definition_tenant_id,
    a.definition_id,
    a.type,
    count(*) AS attempts,
    round(avg(a.run_seconds), 3) AS average_seconds,
    round(percentile_cont(0.5) WITHIN GROUP (ORDER BY a.run_seconds)::numeric, 3) AS median_seconds,
    round(percentile_cont(0.95) WITHIN GROUP (ORDER BY a.run_seconds)::numeric, 3) AS p95_seconds,
    round(max(a.run_seconds), 3) AS longest_seconds
FROM report.attempt a
WHERE a.task_id >= (SELECT oldest.task_id FROM oldest)
    AND a.outcome = 'COMPLETED'
GROUP BY a.definition_tenant_id, a.definition_id, a.type
ORDER BY p95_seconds DESC
LIMIT 20;
