-- How deep each lane is, and how long its oldest job has waited.
--
--   psql "$TES_DATABASE_URL" -c 'SET ROLE tes_report' -f sql/reports/queue_depth.sql
--
-- Jobs in task-execution-deadletter wait for a person to look, not for a place:
-- see dead_letters.sql. A paused lane keeps what it has and takes what comes.

SELECT
    q.lane,
    coalesce(q.priority, '-') AS priority,
    q.waiting,
    q.scheduled,
    q.running,
    make_interval(secs => round(q.oldest_seconds)::double precision) AS oldest,
    q.paused_at
FROM report.queue q
ORDER BY
    q.lane,
    array_position(ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'], q.priority);
