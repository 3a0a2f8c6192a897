-- What others do to our jobs: an operator in River UI, a DBA in psql, River's own
-- rescuer. The triggers only write down that it happened: who touched task from
-- here would take its locks in the wrong order. The engine reads and acts.

-- +goose Up
CREATE TABLE job_signal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    job_id bigint NOT NULL,
    task_id uuid NOT NULL,
    what text NOT NULL,
    by_role text NOT NULL DEFAULT session_user,
    CONSTRAINT what_is_known CHECK (what IN ('cancelled', 'discarded', 'deleted'))
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

-- +goose StatementBegin
CREATE FUNCTION job_signal_note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    job river_job := coalesce(NEW, OLD);
BEGIN
    IF job.args ->> 'task_id' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN
        INSERT INTO job_signal (job_id, task_id, what)
        VALUES (
            job.id, (job.args ->> 'task_id')::uuid,
            CASE WHEN TG_OP = 'DELETE' THEN 'deleted' WHEN NEW.state = 'discarded' THEN 'discarded' ELSE 'cancelled' END
        );
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- A job that runs is not cancelled by River UI, only marked: its executor is asked.
CREATE TRIGGER job_signal_update AFTER UPDATE ON river_job FOR EACH ROW
    WHEN (
        (
            (NEW.state IN ('cancelled', 'discarded') AND OLD.state NOT IN ('completed', 'cancelled', 'discarded'))
            OR (NEW.state = 'running' AND NEW.metadata ? 'cancel_attempted_at' AND NOT OLD.metadata ? 'cancel_attempted_at')
        )
        AND NEW.kind LIKE 'task.%'
        AND current_setting('tes.actor', true) IS DISTINCT FROM 'engine'
    )
    EXECUTE FUNCTION job_signal_note();
-- River's cleaner deletes what has ended, and means nothing by it.
CREATE TRIGGER job_signal_delete AFTER DELETE ON river_job FOR EACH ROW
    WHEN (
        OLD.state NOT IN ('completed', 'cancelled', 'discarded')
        AND OLD.kind LIKE 'task.%'
        AND current_setting('tes.actor', true) IS DISTINCT FROM 'engine'
    )
    EXECUTE FUNCTION job_signal_note();

-- +goose Down
DROP TRIGGER job_signal_delete ON river_job;
DROP TRIGGER job_signal_update ON river_job;
DROP FUNCTION job_signal_note();
DROP TABLE job_signal;
