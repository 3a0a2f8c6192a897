-- The story of one task: the task, its attempts, and every move it made.
--
--   psql "$TES_DATABASE_URL" -c 'SET ROLE tes_report' -v task_id=01a205f7-28b2-7814-9548-8378127ab568 -f sql/reports/task_attempts.sql
--
-- In psql itself: \set task_id 01a205f7-28b2-7814-9548-8378127ab568, then \i.

\if :{?task_id}
\else
    \warn 'Which task? Say psql -v task_id=… -f sql/reports/task_attempts.sql'
    \quit
\endif

SELECT
    t.definition_id,
    t.workflow_id,
    t.status,
    t.priority,
    t.lane,
    t.attempts,
    t.failures,
    t.crashes,
    t.assignee_id,
    t.error_code,
    t.created_at,
    t.ended_at,
    t.next_retry_at,
    t.due_at
FROM report.task t
WHERE t.task_id = :'task_id'
\gx

SELECT
    a.attempt,
    a.executor_id,
    coalesce(a.outcome::text, 'running') AS outcome,
    a.error_code,
    a.started_at,
    a.ended_at,
    round(a.run_seconds, 3) AS run_seconds
FROM report.attempt a
WHERE a.task_id = :'task_id'
ORDER BY a.attempt;

SELECT
    e.seq,
    e.at,
    e.was,
    e.now,
    e.move,
    e.subject,
    e.attempt,
    e.actor,
    e.event_id,
    e.surely_published AS published
FROM report.event e
WHERE e.task_id = :'task_id'
ORDER BY e.seq;
