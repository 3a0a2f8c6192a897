-- Fills ready with what waits already. The triggers of the migration before this one are
-- committed, and saw every job that was written since.

-- +goose Up
-- A claim of the previous version skips the jobs that this statement locks, so that no job
-- becomes running between its being read and its row's commit.
INSERT INTO ready (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
SELECT
    waiting.id, t.task_id, ready_place(waiting.queue, t.type), t.tenant_id, t.definition_id, waiting.priority = 1,
    waiting.scheduled_at, ready_rank(waiting.scheduled_at, waiting.priority)
FROM (
    SELECT j.id, j.queue, j.priority, j.scheduled_at, job_task(j.args) AS task_id
    FROM river_job j
    WHERE j.state = 'available' AND j.kind IN ('task.worker', 'task.deadletter')
    FOR SHARE
) waiting
JOIN task t ON t.task_id = waiting.task_id AND t.job_id = waiting.id
ON CONFLICT (job_id) DO NOTHING;

-- +goose Down
DELETE FROM ready;
