-- name: TaskCreate :many
-- Creates a batch of tasks, each with its job and its first event. A request key that is
-- already taken creates nothing and returns no row; TaskRequestGet returns its task.
-- Event ids are one contiguous range. Times are the database's, because the database
-- decides when a job is due.
WITH request AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@job_ids::bigint[]) AS job_id,
        unnest(@event_ids::bigint[]) AS event_id,
        unnest(@due_ats::timestamptz[]) AS due_at,
        unnest(@types::text[])::task_type AS type,
        unnest(@lanes::text[])::task_lane AS lane,
        unnest(@revisions::integer[]) AS revision,
        unnest(@own_definitions::boolean[]) AS own_definition,
        unnest(@priorities::smallint[]) AS priority,
        unnest(@tenant_ids::text[]) AS tenant_id,
        unnest(@workflow_ids::text[]) AS workflow_id,
        unnest(@definition_ids::text[]) AS definition_id,
        unnest(@executors::text[]) AS executor,
        unnest(@correlation_ids::text[]) AS correlation_id,
        unnest(@step_ids::text[]) AS step_id,
        unnest(@request_keys::text[]) AS request_key,
        unnest(@body_hashes::bytea[]) AS body_hash,
        unnest(@refs::text[]) AS reference,
        unnest(@callback_urls::text[]) AS callback_url,
        unnest(@traceparents::text[]) AS traceparent,
        unnest(@inputs::text[]) AS input,
        unnest(@configs::text[]) AS config,
        unnest(@contexts::text[]) AS context,
        unnest(@actors::text[]) AS actor,
        unnest(@kinds::text[]) AS kind,
        unnest(@args::text[]) AS args,
        unnest(@metadata::text[]) AS metadata,
        unnest(@tags::text[]) AS tag
),
keyed AS (
    INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash)
    SELECT request.tenant_id, request.request_key, request.task_id, now(), request.body_hash
    FROM request
    WHERE request.request_key <> ''
-- All processes insert in the same order: two batches with the same keys in different
-- orders would wait for each other.
    ORDER BY request.tenant_id, request.request_key COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING task_id
),
fresh AS MATERIALIZED (
    SELECT request.*
    FROM request
    WHERE request.request_key = '' OR request.task_id IN (SELECT keyed.task_id FROM keyed)
),
new_task AS (
    INSERT INTO task (
        task_id, job_id, created_at, due_at, type, lane, revision, priority, tenant_id, workflow_id,
        definition_id, executor, correlation_id, step_id, request_id, reference, callback_url, traceparent,
        input, config, context, own_definition
    )
    SELECT
        fresh.task_id, fresh.job_id, now(), nullif(fresh.due_at, 'epoch'), fresh.type, fresh.lane,
        fresh.revision, fresh.priority, fresh.tenant_id, fresh.workflow_id, fresh.definition_id, fresh.executor,
        fresh.correlation_id, nullif(fresh.step_id, ''), nullif(fresh.request_key, ''), nullif(fresh.reference, ''),
        nullif(fresh.callback_url, ''), nullif(fresh.traceparent, ''),
        fresh.input::jsonb, nullif(fresh.config, '')::jsonb, nullif(fresh.context, '')::jsonb, fresh.own_definition
    FROM fresh
),
new_job AS (
    INSERT INTO river_job (
        id, state, attempt, max_attempts, created_at, scheduled_at, priority, args, kind, metadata, queue, tags
    )
    SELECT
        fresh.job_id, 'available', 0, 1, now(), now(), fresh.priority, fresh.args::jsonb,
        fresh.kind, fresh.metadata::jsonb, fresh.lane::text, ARRAY['task-' || fresh.task_id::text, fresh.tag]
    FROM fresh
),
new_event AS (
    INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
    SELECT fresh.event_id, fresh.task_id, now(), 1, 0, 'created', NULL, 'PENDING', fresh.actor
    FROM fresh
    RETURNING id
),
new_outbox AS (
    INSERT INTO outbox (lo, hi)
    SELECT min(new_event.id), max(new_event.id) + 1
    FROM new_event
    HAVING count(*) > 0
),
new_tally AS (
    INSERT INTO tally_delta (at, type, lane, event, was, now, n, run_ms)
    SELECT now(), fresh.type, fresh.lane, 'created', NULL, 'PENDING', count(*), 0
    FROM fresh
    GROUP BY fresh.type, fresh.lane
)
SELECT fresh.task_id::uuid AS task_id, now()::timestamptz AS created_at
FROM fresh;

-- name: TaskRequestGet :many
-- The tasks that these request keys have created, and the hashes of their bodies.
SELECT r.request_key, r.task_id, r.body_hash
FROM task_request r
WHERE r.tenant_id = @tenant_id AND r.request_key = ANY (@request_keys::text[]);

-- name: JobIDs :many
-- Job ids reserved in advance, from River's own sequence.
SELECT nextval('river_job_id_seq')::bigint AS id
FROM generate_series(1, @n::integer);

-- name: EventIDBlock :one
-- The last id of a reserved block of event ids; the block's size is the sequence's increment.
SELECT nextval('task_event_id_seq')::bigint AS last;

-- name: EventsFound :many
-- Which of these events exist: whether a flush with a lost answer was committed.
SELECT e.id FROM task_event e WHERE e.id = ANY (@event_ids::bigint[]);
