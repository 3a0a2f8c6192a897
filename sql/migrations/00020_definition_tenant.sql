-- A definition belongs to a tenant, and a task remembers whose it was made under.
--
-- '' is no tenant: the platform, whose definitions every tenant may use. Rows that were
-- there before are the platform's. A process of the previous version inserts without
-- the new columns, and so writes the platform's definitions, as it did before.

-- +goose Up
ALTER TABLE task_definition
    ADD COLUMN tenant_id text COLLATE "C" NOT NULL DEFAULT '',
    DROP CONSTRAINT task_definition_pkey,
    ADD CONSTRAINT task_definition_pkey PRIMARY KEY (tenant_id, definition_id, revision);

-- True: (definition_id, revision) is a definition of the task's own tenant. False: it is
-- the platform's. Set when the task is made, and never changed: a tenant that registers
-- a definition of its own later changes nothing for the tasks that are there.
ALTER TABLE task ADD COLUMN own_definition boolean NOT NULL DEFAULT false;

CREATE OR REPLACE VIEW report.task AS
SELECT
    t.task_id, t.workflow_id, t.step_id, t.definition_id, t.type, t.status,
    (ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'])[t.priority] AS priority,
    t.lane, t.tenant_id, t.correlation_id, t.assignee_id, t.group_id,
    t.attempt AS attempts, t.failures, t.crashes,
    t.error ->> 'code' AS error_code,
    t.created_at, t.started_at, t.ended_at, t.next_retry_at, t.due_at,
    extract(epoch FROM t.ended_at - t.created_at) AS total_seconds,
    CASE WHEN t.own_definition THEN t.tenant_id ELSE '' END AS definition_tenant_id
FROM task t;
CREATE OR REPLACE VIEW report.attempt AS
SELECT
    a.task_id, a.attempt, t.workflow_id, t.definition_id, t.type, a.executor_id, a.outcome,
    a.error ->> 'code' AS error_code,
    a.started_at, a.ended_at,
    extract(epoch FROM a.ended_at - a.started_at) AS run_seconds,
    CASE WHEN t.own_definition THEN t.tenant_id ELSE '' END AS definition_tenant_id
FROM task_attempt a
JOIN task t ON t.task_id = a.task_id;
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
COMMENT ON COLUMN report.task.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';
COMMENT ON COLUMN report.attempt.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';
COMMENT ON COLUMN report.dead_letter.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';

-- +goose Down
DROP VIEW report.task, report.attempt, report.dead_letter;
CREATE VIEW report.task AS
SELECT
    t.task_id, t.workflow_id, t.step_id, t.definition_id, t.type, t.status,
    (ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'])[t.priority] AS priority,
    t.lane, t.tenant_id, t.correlation_id, t.assignee_id, t.group_id,
    t.attempt AS attempts, t.failures, t.crashes,
    t.error ->> 'code' AS error_code,
    t.created_at, t.started_at, t.ended_at, t.next_retry_at, t.due_at,
    extract(epoch FROM t.ended_at - t.created_at) AS total_seconds
FROM task t;
CREATE VIEW report.attempt AS
SELECT
    a.task_id, a.attempt, t.workflow_id, t.definition_id, t.type, a.executor_id, a.outcome,
    a.error ->> 'code' AS error_code,
    a.started_at, a.ended_at,
    extract(epoch FROM a.ended_at - a.started_at) AS run_seconds
FROM task_attempt a
JOIN task t ON t.task_id = a.task_id;
CREATE VIEW report.dead_letter AS
SELECT
    t.task_id, t.workflow_id, t.definition_id, t.type, t.status,
    t.error ->> 'code' AS error_code,
    left(t.error ->> 'message', 200) AS error_message,
    t.attempt AS attempts, t.ended_at AS died_at, t.job_id,
    report.failure_fingerprint(t.definition_id, t.error ->> 'code', t.error ->> 'message') AS fingerprint
FROM river_job j
JOIN task t ON t.task_id = (j.args ->> 'task_id')::uuid AND t.job_id = j.id
WHERE j.queue = 'task-execution-deadletter' AND j.state IN ('available', 'running');
ALTER TABLE task DROP COLUMN own_definition;
-- Tenants' definitions cannot stand beside the platform's any more. Tasks of these go on
-- as far as the platform has a definition of the same id and revision.
DELETE FROM task_definition d WHERE d.tenant_id <> '';
ALTER TABLE task_definition
    DROP CONSTRAINT task_definition_pkey,
    DROP COLUMN tenant_id,
    ADD CONSTRAINT task_definition_pkey PRIMARY KEY (definition_id, revision);
