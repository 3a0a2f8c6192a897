-- name: DefinitionPut :one
-- Writes a revision. The primary key lets only one writer add a revision: the second writer
-- gets a unique violation, reads the newest revision again, and decides anew.
INSERT INTO task_definition (
    tenant_id, definition_id, revision, type, timeout_ms, version, name, description, created_by, input_schema,
    output_schema, retry_policy, execution_config
)
VALUES (
    @tenant_id, @definition_id, @revision, @type, @timeout_ms, @version, @name, @description, @created_by,
    @input_schema, @output_schema, @retry_policy, @execution_config
)
RETURNING *;

-- name: DefinitionOwn :one
-- The newest revision registered by the tenant itself.
SELECT *
FROM task_definition
WHERE tenant_id = @tenant_id AND definition_id = @definition_id
ORDER BY revision DESC
LIMIT 1;

-- name: DefinitionNewest :one
-- The newest revision that a tenant uses: the tenant's own, else the platform's. '' sorts
-- before every tenant. Two probes of the primary key, independent of the number of revisions.
SELECT *
FROM task_definition d
WHERE (d.tenant_id, d.definition_id, d.revision) IN (
    (
        SELECT own.tenant_id, own.definition_id, own.revision
        FROM task_definition own
        WHERE own.tenant_id = @tenant_id AND own.definition_id = @definition_id
        ORDER BY own.revision DESC
        LIMIT 1
    )
    UNION ALL
    (
        SELECT platform.tenant_id, platform.definition_id, platform.revision
        FROM task_definition platform
        WHERE platform.tenant_id = '' AND platform.definition_id = @definition_id
        ORDER BY platform.revision DESC
        LIMIT 1
    )
)
ORDER BY d.tenant_id DESC
LIMIT 1;

-- name: DefinitionGet :one
SELECT *
FROM task_definition
WHERE tenant_id = @tenant_id AND definition_id = @definition_id AND revision = @revision;

-- name: DefinitionList :many
-- A page of the definitions that a tenant uses, by id, each in its newest revision: the
-- tenant's own and the platform's, an own definition in place of the platform's of the same
-- id. Each half walks the primary key and stops after a page.
WITH own AS (
    SELECT DISTINCT ON (o.definition_id) o.tenant_id, o.definition_id, o.revision
    FROM task_definition o
    WHERE o.tenant_id = @tenant_id AND o.definition_id > @after
    ORDER BY o.definition_id, o.revision DESC
    LIMIT @page
),
platform AS (
    SELECT DISTINCT ON (p.definition_id) p.tenant_id, p.definition_id, p.revision
    FROM task_definition p
    WHERE p.tenant_id = '' AND p.definition_id > @after
    ORDER BY p.definition_id, p.revision DESC
    LIMIT @page
),
used AS (
    SELECT DISTINCT ON (b.definition_id) b.tenant_id, b.definition_id, b.revision
    FROM (SELECT * FROM own UNION ALL SELECT * FROM platform) b
    ORDER BY b.definition_id, b.tenant_id DESC
    LIMIT @page
)
SELECT d.*
FROM used
JOIN task_definition d
    ON d.tenant_id = used.tenant_id AND d.definition_id = used.definition_id AND d.revision = used.revision
ORDER BY d.definition_id;
