-- River fetches the next notices by priority, then by when they are due. Without an index
-- in that order it sorts all that is due, at each of its looks: five a second. Only the
-- notices' jobs are in this one, so the lanes' jobs do not pay for it.

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX CONCURRENTLY river_job_notice_index
    ON river_job (priority, scheduled_at, id)
    WHERE state = 'available' AND queue = 'task-notices';

-- +goose Down
DROP INDEX CONCURRENTLY river_job_notice_index;
