-- +goose Up

-- New payloads are compressed by lz4, which costs a fifth of pglz, where the server was
-- built with it; older rows stay as they are, and are read all the same. The lock is short:
-- nothing is rewritten.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE task
        ALTER COLUMN input SET COMPRESSION lz4,
        ALTER COLUMN output SET COMPRESSION lz4,
        ALTER COLUMN error SET COMPRESSION lz4,
        ALTER COLUMN config SET COMPRESSION lz4,
        ALTER COLUMN context SET COMPRESSION lz4;
    ALTER TABLE task_attempt ALTER COLUMN error SET COMPRESSION lz4;
    ALTER TABLE task_event ALTER COLUMN payload SET COMPRESSION lz4;
    ALTER TABLE task_checkpoint
        ALTER COLUMN progress SET COMPRESSION lz4,
        ALTER COLUMN checkpoint SET COMPRESSION lz4;
    ALTER TABLE task_definition
        ALTER COLUMN input_schema SET COMPRESSION lz4,
        ALTER COLUMN output_schema SET COMPRESSION lz4,
        ALTER COLUMN execution_config SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    RAISE NOTICE 'this server has no lz4: payloads are compressed by pglz';
END
$$;
-- +goose StatementEnd

-- About how many bytes a document has when it is read, without reading it: what is
-- compressed may be 64 times as long, and no document that comes in is over a megabyte.
-- +goose StatementBegin
CREATE FUNCTION payload_weight(doc jsonb) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN doc IS NULL THEN 0
        WHEN pg_column_compression(doc) IS NULL THEN pg_column_size(doc)
        ELSE least(64 * pg_column_size(doc), 1048576)
    END::bigint
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION payload_weight(jsonb);
