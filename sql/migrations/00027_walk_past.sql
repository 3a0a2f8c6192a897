-- What one row, or a hundred thousand, must not do to everybody else.

-- +goose Up

-- The task that a job names; null where its args, which operators can edit, name none. A
-- cast would raise, and one such row would end every statement that comes by it. SQL, so
-- that the planner puts the expression in the function's place.
CREATE FUNCTION job_task(args jsonb) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN args ->> 'task_id' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN (args ->> 'task_id')::uuid
    END
$$;

CREATE OR REPLACE VIEW report.dead_letter AS
SELECT
    t.task_id, t.workflow_id, t.definition_id, t.type, t.status,
    t.error ->> 'code' AS error_code,
    left(t.error ->> 'message', 200) AS error_message,
    t.attempt AS attempts, t.ended_at AS died_at, t.job_id,
    report.failure_fingerprint(t.definition_id, t.error ->> 'code', t.error ->> 'message') AS fingerprint,
    CASE WHEN t.own_definition THEN t.tenant_id ELSE '' END AS definition_tenant_id
FROM river_job j
JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id
WHERE j.queue = 'task-execution-deadletter' AND j.state IN ('available', 'running');

-- Which call of a dequeue with a request id may take: the last that wrote its turn. The row
-- goes in the commit in which the leases come, so it is there while a call is under way,
-- and what a killed process leaves is forgotten.
CREATE TABLE dequeue_turn (
    tenant_id text NOT NULL,
    owner text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    turn bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, owner, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

-- task.open_for in the order in which claim-next wants it: a row for each principal whom an
-- ASSIGNED task waits for. The GIN index of open_for finds all that waits, in no order.
-- Written by the triggers below and by nobody else.
CREATE TABLE task_open (
    tenant_id text NOT NULL,
    principal text COLLATE "C" NOT NULL,
    priority smallint NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    task_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, principal, priority, due_at, created_at, task_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX task_open_task ON task_open (task_id);

-- +goose StatementBegin
CREATE FUNCTION task_open_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM task_open o WHERE o.task_id = OLD.task_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO task_open (tenant_id, principal, priority, due_at, created_at, task_id)
        SELECT DISTINCT NEW.tenant_id, p.name, NEW.priority, coalesce(NEW.due_at, 'infinity'), NEW.created_at, NEW.task_id
        FROM unnest(NEW.open_for) AS p (name);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- The conditions are false at every move of a task that code does.
CREATE TRIGGER task_open_insert AFTER INSERT ON task FOR EACH ROW
    WHEN (NEW.open_for IS NOT NULL)
    EXECUTE FUNCTION task_open_note();
CREATE TRIGGER task_open_update AFTER UPDATE ON task FOR EACH ROW
    WHEN (
        OLD.open_for IS DISTINCT FROM NEW.open_for
        OR (NEW.open_for IS NOT NULL AND (OLD.due_at IS DISTINCT FROM NEW.due_at OR OLD.priority <> NEW.priority))
    )
    EXECUTE FUNCTION task_open_note();
CREATE TRIGGER task_open_delete AFTER DELETE ON task FOR EACH ROW
    WHEN (OLD.open_for IS NOT NULL)
    EXECUTE FUNCTION task_open_note();

-- The triggers' locks keep out who moves tasks until this has committed.
INSERT INTO task_open (tenant_id, principal, priority, due_at, created_at, task_id)
SELECT DISTINCT t.tenant_id, p.name, t.priority, coalesce(t.due_at, 'infinity'), t.created_at, t.task_id
FROM task t
CROSS JOIN LATERAL unnest(t.open_for) AS p (name)
WHERE t.open_for IS NOT NULL;

-- +goose Down
DROP TRIGGER task_open_delete ON task;
DROP TRIGGER task_open_update ON task;
DROP TRIGGER task_open_insert ON task;
DROP FUNCTION task_open_note();
DROP TABLE task_open, dequeue_turn;
CREATE OR REPLACE VIEW report.dead_letter AS
SELECT
    t.task_id, t.workflow_id, t.definition_id, t.type, t.status,
    t.error ->> 'code' AS error_code,
    left(t.error ->> 'message', 200) AS error_message,
    t.attempt AS attempts, t.ended_at AS died_at, t.job_id,
    report.failure_fingerprint(t.definition_id, t.error ->> 'code', t.error ->> 'message') AS fingerprint,
    CASE WHEN t.own_definition THEN t.tenant_id ELSE '' END AS definition_tenant_id
FROM river_job j
JOIN task t ON t.task_id = (j.args ->> 'task_id')::uuid AND t.job_id = j.id
WHERE j.queue = 'task-execution-deadletter' AND j.state IN ('available', 'running');
DROP FUNCTION job_task(jsonb);
