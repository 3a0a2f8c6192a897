-- River's own tables (00001 to 00008) are made by River; here they are fitted
-- to the way we use them. Every change of a job's state writes all of its index
-- entries, so each index that nobody reads is paid for three times a task.

-- +goose Up

-- Never read by River or by River UI, and half of a job's WAL.
DROP INDEX river_job_args_index;
DROP INDEX river_job_metadata_index;
DROP INDEX river_job_kind;

-- The same name as River's, so that its reindexer still finds it. Finished jobs
-- are left out, and kind stands before priority: a lane full of jobs that only
-- remote workers may take must not be walked by the executors in process.
DROP INDEX river_job_prioritized_fetching_index;
CREATE INDEX river_job_prioritized_fetching_index
    ON river_job (state, queue, kind, priority, scheduled_at, id)
    WHERE state IN ('available', 'pending', 'retryable', 'running', 'scheduled');

-- River's scheduler looks every five seconds for what has become due.
CREATE INDEX river_job_schedule_index
    ON river_job (priority, scheduled_at, id)
    WHERE state IN ('retryable', 'scheduled');

-- A queue table turns over its whole content in minutes.
ALTER TABLE river_job SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05
);

-- Pausing a queue touches only rows that exist, and River UI shows only these.
INSERT INTO river_queue (name, metadata, created_at, updated_at)
SELECT lane.name, '{}', now(), now()
FROM unnest(ARRAY[
    'task-execution-automated',
    'task-execution-integration',
    'task-execution-manual',
    'task-execution-retry',
    'task-execution-deadletter'
]) AS lane (name)
ON CONFLICT (name) DO NOTHING;

-- +goose Down
DROP INDEX river_job_schedule_index;
DROP INDEX river_job_prioritized_fetching_index;
CREATE INDEX river_job_prioritized_fetching_index ON river_job (state, queue, priority, scheduled_at, id);
CREATE INDEX river_job_kind ON river_job (kind);
CREATE INDEX river_job_metadata_index ON river_job USING gin (metadata);
CREATE INDEX river_job_args_index ON river_job USING gin (args);
ALTER TABLE river_job RESET (
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_cost_delay,
    autovacuum_analyze_scale_factor
);
