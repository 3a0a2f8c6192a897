-- What ended for good without success and waits for somebody to look, by kind of
-- task and by error, the most frequent first. One task of each is named, to begin
-- with: task_attempts.sql tells its story.
--
--   psql "$TES_DATABASE_URL" -c 'SET ROLE tes_report' -f sql/reports/dead_letters.sql

SELECT
    d.definition_tenant_id,
    d.definition_id,
    d.status,
    coalesce(d.error_code, '-') AS error_code,
    count(*) AS tasks,
    min(d.died_at) AS first_died_at,
    max(d.died_at) AS last_died_at,
    (array_agg(d.task_id ORDER BY d.died_at DESC))[1] AS newest_task_id,
    (array_agg(d.error_message ORDER BY d.died_at DESC))[1] AS newest_message
FROM report.dead_letter d
GROUP BY d.definition_tenant_id, d.definition_id, d.status, d.error_code
ORDER BY tasks DESC, d.definition_tenant_id, d.definition_id;
