-- Work for remote workers, where a dequeue finds it: by tenant and definition, whatever waits
-- for others.

-- +goose Up

-- One row for each job that a remote worker or an error handler can lease: an available
-- river_job of kind task.worker or task.deadletter. The row is an index entry, not the truth:
-- a claim locks the job too, and a row whose job is not available is deleted by the next
-- claim that meets it. Kept by the trigger below, whoever writes river_job: the service, River
-- UI, River's leader, a hand in psql, or the previous version of the program.
CREATE TABLE ready (
    job_id bigint PRIMARY KEY,
    task_id uuid NOT NULL,
    place text COLLATE "C" NOT NULL, -- see ready_place
    tenant_id text COLLATE "C" NOT NULL,
    definition_id text COLLATE "C" NOT NULL,
    urgent boolean NOT NULL, -- priority CRITICAL, which has half of each claim
    due_at timestamptz NOT NULL,
    -- The order of claims: the due time, a minute later for each step of priority below
    -- CRITICAL. So a LOW task stands before all that becomes due three minutes after it.
    rank timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
-- Without job_id: the planner would take an index that ends with it for lookups by job.
CREATE INDEX ready_order ON ready (place, tenant_id, definition_id, urgent, rank);

-- Where a job waits for remote workers: its queue, and in the retry queue the type of its task
-- too, because a dequeue names one.
CREATE FUNCTION ready_place(queue text, type task_type) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE queue WHEN 'task-execution-retry' THEN queue || ' ' || type::text ELSE queue END
    $$;

CREATE FUNCTION ready_rank(due_at timestamptz, priority smallint) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT due_at + (priority - 1) * interval '60 seconds'
    $$;

-- +goose StatementBegin
CREATE FUNCTION ready_follow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM ready r WHERE r.job_id = OLD.id;
    END IF;

    IF TG_OP <> 'DELETE' AND NEW.state = 'available' AND NEW.kind IN ('task.worker', 'task.deadletter') THEN
        -- A job that is not its task's current one can never be claimed.
        INSERT INTO ready (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
        SELECT
            NEW.id, t.task_id, ready_place(NEW.queue, t.type), t.tenant_id, t.definition_id, NEW.priority = 1,
            NEW.scheduled_at, ready_rank(NEW.scheduled_at, NEW.priority)
        FROM task t
        WHERE t.task_id = job_task(NEW.args) AND t.job_id = NEW.id
        ON CONFLICT (job_id) DO NOTHING;
    END IF;

    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER ready_insert AFTER INSERT ON river_job FOR EACH ROW
    WHEN (NEW.kind IN ('task.worker', 'task.deadletter') AND NEW.state = 'available')
    EXECUTE FUNCTION ready_follow();
CREATE TRIGGER ready_update AFTER UPDATE ON river_job FOR EACH ROW
    WHEN (
        (OLD.kind IN ('task.worker', 'task.deadletter') OR NEW.kind IN ('task.worker', 'task.deadletter'))
        AND (OLD.state = 'available' OR NEW.state = 'available')
        AND (OLD.state, OLD.kind, OLD.queue, OLD.priority, OLD.scheduled_at, OLD.args)
            IS DISTINCT FROM (NEW.state, NEW.kind, NEW.queue, NEW.priority, NEW.scheduled_at, NEW.args)
    )
    EXECUTE FUNCTION ready_follow();
CREATE TRIGGER ready_delete AFTER DELETE ON river_job FOR EACH ROW
    WHEN (OLD.kind IN ('task.worker', 'task.deadletter') AND OLD.state = 'available')
    EXECUTE FUNCTION ready_follow();

-- +goose StatementBegin
CREATE FUNCTION ready_empty() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM ready;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER ready_truncate AFTER TRUNCATE ON river_job EXECUTE FUNCTION ready_empty();

-- Also for sessions that fire no ordinary triggers (session_replication_role): a job without
-- its row would wait for the reconciliation.
ALTER TABLE river_job ENABLE ALWAYS TRIGGER ready_insert;
ALTER TABLE river_job ENABLE ALWAYS TRIGGER ready_update;
ALTER TABLE river_job ENABLE ALWAYS TRIGGER ready_delete;
ALTER TABLE river_job ENABLE ALWAYS TRIGGER ready_truncate;

-- +goose Down
DROP TRIGGER ready_truncate ON river_job;
DROP TRIGGER ready_delete ON river_job;
DROP TRIGGER ready_update ON river_job;
DROP TRIGGER ready_insert ON river_job;
DROP FUNCTION ready_empty();
DROP FUNCTION ready_follow();
DROP FUNCTION ready_rank(timestamptz, smallint);
DROP FUNCTION ready_place(text, task_type);
DROP TABLE ready;
