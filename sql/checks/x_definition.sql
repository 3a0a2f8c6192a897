-- The definition of every task exists: the tenant's own or the platform's.
SELECT
    t.task_id::text AS task,
    format('revision %s of %s, %s', t.revision, t.definition_id, CASE WHEN t.own_definition THEN 'tenant ' || t.tenant_id ELSE 'the platform''s' END) AS detail
FROM task t
WHERE (t.revision <> 0 OR t.own_definition)
    AND NOT EXISTS (
        SELECT
        FROM task_definition d
        WHERE d.tenant_id = CASE WHEN t.own_definition THEN t.tenant_id ELSE '' END
            AND d.definition_id = t.definition_id
            AND d.revision = t.revision
    );
