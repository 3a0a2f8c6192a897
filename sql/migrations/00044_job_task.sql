-- The same as before, at a quarter of the cost: every claim comes by it. A pattern that counts
-- ({8}, {4} …) took most of its time.

-- +goose Up
CREATE OR REPLACE FUNCTION job_task(args jsonb) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN args ->> 'task_id' LIKE '________-____-____-____-____________'
            AND (args ->> 'task_id') COLLATE "C" !~ '[^0-9a-f-]'
            AND length(replace(args ->> 'task_id', '-', '')) = 32
            THEN (args ->> 'task_id')::uuid
    END
$$;

-- +goose Down
CREATE OR REPLACE FUNCTION job_task(args jsonb) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN args ->> 'task_id' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN (args ->> 'task_id')::uuid
    END
$$;
