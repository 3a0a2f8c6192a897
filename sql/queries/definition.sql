-- name: DefinitionPut :one
-- A new revision, unless the newest says the same already.
INSERT INTO task_definition (
    definition_id, revision, type, timeout_ms, version, name, description, created_by, input_schema, output_schema,
    retry_policy, execution_config
)
VALUES (
    @definition_id,
    (SELECT coalesce(max(d.revision), 0) + 1 FROM task_definition d WHERE d.definition_id = @definition_id),
    @type, @timeout_ms, @version, @name, @description, @created_by, @input_schema, @output_schema, @retry_policy,
    @execution_config
)
RETURNING *;

-- name: DefinitionLock :exec
-- One writer a definition at a time, also for the first revision.
SELECT pg_advisory_xact_lock(hashtextextended('task_definition ' || @definition_id::text, 0));

-- name: DefinitionNewest :one
SELECT *
FROM task_definition
WHERE definition_id = @definition_id
ORDER BY revision DESC
LIMIT 1;

-- name: DefinitionGet :one
SELECT *
FROM task_definition
WHERE definition_id = @definition_id AND revision = @revision;

-- name: DefinitionList :many
SELECT DISTINCT ON (d.definition_id) *
FROM task_definition d
WHERE d.definition_id > @after
ORDER BY d.definition_id, d.revision DESC
LIMIT @page;
