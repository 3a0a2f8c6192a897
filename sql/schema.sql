
CREATE SCHEMA report;

COMMENT ON SCHEMA report IS 'Stable views over tes for reports; read as tes_report.';

CREATE TYPE public.attempt_outcome AS ENUM (
    'COMPLETED',
    'FAILED',
    'TIMED_OUT',
    'LEASE_EXPIRED',
    'CANCELLED',
    'RELEASED'
);

CREATE TYPE public.lease_kind AS ENUM (
    'process',
    'worker',
    'response',
    'person',
    'letter'
);

CREATE TYPE public.redrive_item_state AS ENUM (
    'WAITING',
    'REDRIVEN',
    'REJECTED',
    'UNDONE'
);

CREATE TYPE public.redrive_state AS ENUM (
    'CANARY',
    'RUNNING',
    'STOPPED',
    'DONE',
    'UNDONE'
);

CREATE TYPE public.river_job_state AS ENUM (
    'available',
    'cancelled',
    'completed',
    'discarded',
    'pending',
    'retryable',
    'running',
    'scheduled'
);

CREATE TYPE public.task_event_type AS ENUM (
    'created',
    'started',
    'completed',
    'failed',
    'canceled',
    'retry',
    'assigned',
    'released',
    'redriven'
);

CREATE TYPE public.task_lane AS ENUM (
    'task-execution-automated',
    'task-execution-integration',
    'task-execution-manual',
    'task-execution-retry',
    'task-execution-deadletter'
);

CREATE TYPE public.task_status AS ENUM (
    'PENDING',
    'ASSIGNED',
    'RUNNING',
    'COMPLETED',
    'FAILED',
    'CANCELLED',
    'TIMED_OUT'
);

CREATE TYPE public.task_type AS ENUM (
    'AUTOMATED',
    'INTEGRATION',
    'MANUAL'
);

CREATE FUNCTION public.callback_host(url text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    -- Whoever waits in one row behind the others of its host. Never the user info,
    -- which could be a secret; never NULL.
    SELECT coalesce(lower(regexp_replace(substring(url FROM '^https?://([^/?#]*)'), '^.*@', '')), '')
$$;

CREATE FUNCTION public.callback_tells(event public.task_event_type) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    -- Creation is told by the answer to it; the others are for the audit trail alone.
    SELECT event NOT IN ('created', 'released', 'redriven')
$$;

CREATE FUNCTION public.job_signal_note() RETURNS trigger
    LANGUAGE plpgsql
    AS $_$
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
$_$;

CREATE FUNCTION public.job_task(args jsonb) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE
        WHEN args ->> 'task_id' LIKE '________-____-____-____-____________'
            AND (args ->> 'task_id') COLLATE "C" !~ '[^0-9a-f-]'
            AND length(replace(args ->> 'task_id', '-', '')) = 32
            THEN (args ->> 'task_id')::uuid
    END
$$;

CREATE FUNCTION public.pause_lock_exclusive() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    LOCK TABLE pause_lock IN EXCLUSIVE MODE;
END
$$;

CREATE FUNCTION public.pause_note_queue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
DECLARE
    who constant text := coalesce(nullif(current_setting('tes.pause_by', true), ''), 'role:' || session_user);
    why constant text := coalesce(current_setting('tes.pause_reason', true), '');
BEGIN
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND NEW.paused_at IS NULL THEN
        UPDATE pause p
        SET resumed_at = now(), resumed_by = who, resume_reason = why, released = true
        WHERE p.scope = 'queue' AND p.name = OLD.name AND p.tenant_id = '' AND p.resumed_at IS NULL;

        -- A hand has deleted the pause: the queue is resumed all the same, and the resume recorded.
        IF NOT FOUND THEN
            INSERT INTO pause (scope, name, paused_at, paused_by, pause_reason, resumed_at, resumed_by, resume_reason, released)
            VALUES ('queue', OLD.name, OLD.paused_at, 'unknown', '', now(), who, why, true);
        END IF;
    ELSE
        INSERT INTO pause (scope, name, paused_at, paused_by, pause_reason)
        VALUES ('queue', NEW.name, NEW.paused_at, who, why)
        ON CONFLICT (scope, name, tenant_id) WHERE resumed_at IS NULL DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.payload_weight(doc jsonb) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    SELECT CASE
        WHEN doc IS NULL THEN 0
        WHEN pg_column_compression(doc) IS NULL THEN pg_column_size(doc)
        ELSE least(64 * pg_column_size(doc), 1048576)
    END::bigint
$$;

CREATE FUNCTION public.ready_empty() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
BEGIN
    DELETE FROM ready;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.ready_follow() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.ready_place(queue text, type public.task_type) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE queue WHEN 'task-execution-retry' THEN queue || ' ' || type::text ELSE queue END
    $$;

CREATE FUNCTION public.ready_rank(due_at timestamp with time zone, priority smallint) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT due_at + (priority - 1) * interval '60 seconds'
    $$;

CREATE FUNCTION public.river_job_state_in_bitmask(bitmask bit, state public.river_job_state) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT CASE state
        WHEN 'available' THEN get_bit(bitmask, 7)
        WHEN 'cancelled' THEN get_bit(bitmask, 6)
        WHEN 'completed' THEN get_bit(bitmask, 5)
        WHEN 'discarded' THEN get_bit(bitmask, 4)
        WHEN 'pending'   THEN get_bit(bitmask, 3)
        WHEN 'retryable' THEN get_bit(bitmask, 2)
        WHEN 'running'   THEN get_bit(bitmask, 1)
        WHEN 'scheduled' THEN get_bit(bitmask, 0)
        ELSE 0
    END = 1;
$$;

CREATE FUNCTION public.task_attempt_guard() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'attempt % of task % is not deleted: an attempt that has ended is kept', OLD.attempt, OLD.task_id
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE FUNCTION public.task_event_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
DECLARE
    looked constant integer := 16;
    n bigint;
    forged record;
BEGIN
    SELECT count(*) INTO n FROM new_event;
    SELECT e.task_id, e.seq, e.type
    INTO forged
    FROM (
        SELECT v.task_id, v.seq, v.type, v.now
        FROM new_event v
        OFFSET floor(random() * greatest(n - looked + 1, 1))
        LIMIT looked
    ) e
    WHERE NOT EXISTS (
        SELECT
        FROM task t
        WHERE t.task_id = e.task_id
            AND CASE t.version - e.seq
                WHEN 0 THEN t.status = e.now
                WHEN 1 THEN e.type = 'started' AND t.status = 'COMPLETED' -- a start and an end in one commit
                ELSE false
            END
    )
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event % (%) of task % belongs to no move of it', forged.seq, forged.type, forged.task_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.task_guard() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF current_setting('tes.actor', true) IS DISTINCT FROM 'engine' THEN
        RAISE EXCEPTION 'task % is not changed by hand: its row, its job and its event belong to one move', OLD.task_id
            USING ERRCODE = 'restrict_violation',
                HINT = 'Use POST /api/internal/tasks/{taskId}/cancel, PUT /api/internal/tasks/{taskId}/status or POST /api/internal/tasks/{taskId}/reassign.';
    END IF;
    IF OLD.version = NEW.version AND OLD.status = NEW.status THEN
        RAISE EXCEPTION 'task % has ended as %: how it ended does not change', OLD.task_id, OLD.status
            USING ERRCODE = 'restrict_violation',
                HINT = 'A redrive begins it anew: POST /api/internal/dead-letters/redrive.';
    END IF;
    RAISE EXCEPTION 'task % cannot go from % to % in % step(s)', OLD.task_id, OLD.status, NEW.status, NEW.version - OLD.version
        USING ERRCODE = 'restrict_violation',
            DETAIL = (
                SELECT format('From %s it may go to %s.', OLD.status, coalesce(string_agg(m.now::text, ', '), 'nowhere'))
                FROM task_move m
                WHERE m.was = OLD.status
            );
END
$$;

CREATE FUNCTION public.task_guard_fixed() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'task %: what it was created with does not change', OLD.task_id
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE FUNCTION public.task_move_legal(was public.task_status, now public.task_status, steps integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
            SELECT CASE steps WHEN 0 THEN was = now WHEN 1 THEN (was, now) IN (('PENDING', 'ASSIGNED'), ('PENDING', 'RUNNING'), ('PENDING', 'FAILED'), ('PENDING', 'CANCELLED'), ('PENDING', 'TIMED_OUT'), ('ASSIGNED', 'ASSIGNED'), ('ASSIGNED', 'RUNNING'), ('ASSIGNED', 'COMPLETED'), ('ASSIGNED', 'FAILED'), ('ASSIGNED', 'CANCELLED'), ('ASSIGNED', 'TIMED_OUT'), ('RUNNING', 'PENDING'), ('RUNNING', 'ASSIGNED'), ('RUNNING', 'COMPLETED'), ('RUNNING', 'FAILED'), ('RUNNING', 'CANCELLED'), ('RUNNING', 'TIMED_OUT'), ('FAILED', 'PENDING'), ('TIMED_OUT', 'PENDING')) WHEN 2 THEN (was, now) IN (('PENDING', 'COMPLETED')) ELSE false END
            $$;

CREATE FUNCTION public.task_open_for(assignee_id text, group_id text, candidates jsonb) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE WHEN cardinality(named.principals) > 0 THEN named.principals ELSE ARRAY['anyone'] END
    FROM (
        SELECT ARRAY(
            SELECT 'user:' || assignee_id WHERE assignee_id IS NOT NULL
            UNION ALL
            SELECT 'group:' || group_id WHERE group_id IS NOT NULL
            UNION ALL
            SELECT 'user:' || u FROM jsonb_array_elements_text(candidates -> 'users') u
            UNION ALL
            SELECT 'group:' || g FROM jsonb_array_elements_text(candidates -> 'groups') g
            UNION ALL
            SELECT 'role:' || r FROM jsonb_array_elements_text(candidates -> 'roles') r
        ) AS principals
    ) named
    $$;

CREATE FUNCTION public.task_open_ids(principals text[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
    -- Which of the reader's tasks wait for one of these. Under a policy the index on
    -- open_for cannot be used, for && might tell of rows that are not to be seen. So
    -- this passes by the policy, as the owner, and asks the same itself.
    SELECT t.task_id
    FROM task t
    WHERE t.open_for && principals AND current_setting('tes.tenant', true) = '=' || t.tenant_id
    $$;

CREATE FUNCTION public.task_open_note() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.task_pauses(task_id uuid, tenant_id text, definition_id text, own_definition boolean) RETURNS SETOF bigint
    LANGUAGE sql STABLE ROWS 1
    AS $_$
    SELECT p.id
    FROM pause p
    WHERE p.resumed_at IS NULL AND p.scope = 'definition' AND p.name = $3 AND (p.tenant_id = $2 OR (p.tenant_id = '' AND NOT $4))
    UNION ALL
    SELECT p.id
    FROM pause p
    WHERE p.resumed_at IS NULL AND p.scope = 'task' AND p.name = $1::text AND p.tenant_id = $2
    $_$;

CREATE FUNCTION report.event_id(task_id uuid, seq integer) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    -- outbox.EventID says the same in Go: UUID version 8 over the SHA-256 of both.
    SELECT encode(
        set_byte(
            set_byte(substring(h.sum FROM 1 FOR 16), 6, (get_byte(h.sum, 6) & 15) | 128),
            8, (get_byte(h.sum, 8) & 63) | 128
        ), 'hex')::uuid
    FROM (SELECT sha256(uuid_send(task_id) || int4send(seq)) AS sum) h
$$;

COMMENT ON FUNCTION report.event_id(task_id uuid, seq integer) IS 'The id under which an event is told on the bus.';

CREATE FUNCTION report.failure_fingerprint(definition_id text, error_code text, message text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT left(encode(sha256(convert_to(
        jsonb_build_array(definition_id, error_code, report.message_pattern(message))::text, 'UTF8')), 'hex'), 16)
$$;

COMMENT ON FUNCTION report.failure_fingerprint(definition_id text, error_code text, message text) IS 'The same for failures of one definition, one code and one message pattern.';

CREATE FUNCTION report.message_pattern(message text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    -- What differs between two failures of one cause: texts in quotes, UUIDs, hex
    -- and numbers. An apostrophe within a word is no quote, and a number is not hex.
    SELECT regexp_replace(regexp_replace(regexp_replace(regexp_replace(left(coalesce(message, ''), 1000),
        '"[^"]*"|`[^`]*`|(?<![[:alnum:]])''[^'']*''(?![[:alnum:]])', '<text>', 'g'),
        '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<uuid>', 'g'),
        '\m(0[xX][0-9a-fA-F]+|(?=[0-9]*[a-fA-F])(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,})\M', '<hex>', 'g'),
        '[0-9]+([.,:][0-9]+)*', '<n>', 'g')
$$;

COMMENT ON FUNCTION report.message_pattern(message text) IS 'An error message without what differs from one failure to the next of the same cause.';

CREATE TABLE public.call_answer (
    tenant_id text NOT NULL,
    caller text NOT NULL COLLATE pg_catalog."C",
    operation text NOT NULL COLLATE pg_catalog."C",
    call_key text NOT NULL COLLATE pg_catalog."C",
    turn bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    until timestamp with time zone NOT NULL,
    status integer,
    body_hash bytea NOT NULL,
    headers jsonb,
    body bytea,
    CONSTRAINT answered_whole CHECK ((((status IS NULL) = (body IS NULL)) AND ((status IS NULL) = (headers IS NULL))))
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='1000');

CREATE TABLE public.callback (
    task_id uuid NOT NULL,
    told integer NOT NULL,
    upto integer NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    claim integer DEFAULT 0 NOT NULL,
    since timestamp with time zone NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    host text NOT NULL COLLATE pg_catalog."C",
    problem text,
    CONSTRAINT something_to_tell CHECK ((told < upto))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000');

CREATE TABLE public.callback_given_up (
    task_id uuid NOT NULL,
    seq integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    tries integer NOT NULL,
    host text NOT NULL,
    problem text NOT NULL
);

CREATE TABLE public.dead_letter_discard (
    task_id uuid NOT NULL,
    job_id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL
);

CREATE TABLE public.dequeue_turn (
    tenant_id text NOT NULL,
    owner text NOT NULL COLLATE pg_catalog."C",
    request_id text NOT NULL COLLATE pg_catalog."C",
    turn bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='1000');

CREATE TABLE public.event_unknown (
    event_id uuid NOT NULL,
    stream_seq bigint NOT NULL,
    found_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone
);

COMMENT ON TABLE public.event_unknown IS 'Events that the bus has and this database does not: it went back in time.';

COMMENT ON COLUMN public.event_unknown.seen_at IS 'When an operator dealt with it; until then /readyz and tes check tell of it.';

CREATE TABLE public.executor (
    executor_id text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    worker_at timestamp with time zone,
    kinds text[]
)
WITH (fillfactor='50');

CREATE TABLE public.goose_db_version (
    id integer NOT NULL,
    version_id bigint NOT NULL,
    is_applied boolean NOT NULL,
    tstamp timestamp without time zone DEFAULT now() NOT NULL
);

ALTER TABLE public.goose_db_version ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.goose_db_version_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.inbound (
    subject text NOT NULL,
    acted bigint DEFAULT 0 NOT NULL,
    ignored bigint DEFAULT 0 NOT NULL,
    repeated bigint DEFAULT 0 NOT NULL,
    dead bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE public.inbox (
    event_id text NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    subject text NOT NULL,
    outcome text NOT NULL,
    detail text
);

CREATE TABLE public.job_signal (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    job_id bigint NOT NULL,
    task_id uuid NOT NULL,
    what text NOT NULL,
    by_role text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT what_is_known CHECK ((what = ANY (ARRAY['cancelled'::text, 'discarded'::text, 'deleted'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='1000');

ALTER TABLE public.job_signal ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.job_signal_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.lease (
    task_id uuid NOT NULL,
    job_id bigint NOT NULL,
    attempt integer NOT NULL,
    kind public.lease_kind NOT NULL,
    visibility_ms bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    deadline_at timestamp with time zone,
    owner text NOT NULL,
    invocation_id text,
    request_id text
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000');

CREATE TABLE public.maintenance (
    lane public.task_lane NOT NULL,
    since timestamp with time zone NOT NULL,
    until timestamp with time zone,
    reason text NOT NULL,
    actor text NOT NULL,
    said_at timestamp with time zone NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE public.maintenance_change (
    event_id text NOT NULL,
    lane public.task_lane NOT NULL,
    at timestamp with time zone NOT NULL,
    enabled boolean NOT NULL,
    until timestamp with time zone,
    reason text NOT NULL,
    actor text NOT NULL
);

CREATE TABLE public.notice (
    notice_id bigint NOT NULL,
    task_id uuid NOT NULL,
    deadline_id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    settled_at timestamp with time zone,
    tries integer DEFAULT 0 NOT NULL,
    percent smallint NOT NULL,
    what text NOT NULL,
    outcome text DEFAULT 'waiting'::text NOT NULL,
    user_id text NOT NULL,
    channel text,
    detail text,
    CONSTRAINT outcome_is_known CHECK ((outcome = ANY (ARRAY['waiting'::text, 'sent'::text, 'refused'::text, 'moot'::text, 'off'::text]))),
    CONSTRAINT sent_by_a_channel CHECK (((channel IS NOT NULL) = (outcome = 'sent'::text))),
    CONSTRAINT settled_when_not_waiting CHECK (((settled_at IS NULL) = (outcome = 'waiting'::text))),
    CONSTRAINT what_is_known CHECK ((what = ANY (ARRAY['assigned'::text, 'reminder'::text, 'overdue'::text, 'escalated'::text])))
);

CREATE TABLE public.outbox (
    id bigint NOT NULL,
    lo bigint NOT NULL,
    hi bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT range_not_empty CHECK ((lo < hi))
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE public.outbox ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_parked (
    event_id bigint NOT NULL,
    task_id uuid NOT NULL,
    reason text NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.outbox_published (
    id bigint NOT NULL,
    lo bigint NOT NULL,
    hi bigint NOT NULL,
    last_seq bigint NOT NULL,
    published_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.outbox_stream (
    only_one boolean DEFAULT true NOT NULL,
    stream_created_at timestamp with time zone NOT NULL,
    CONSTRAINT outbox_stream_only_one_check CHECK (only_one)
);

CREATE TABLE public.pause (
    id bigint NOT NULL,
    scope text NOT NULL COLLATE pg_catalog."C",
    tenant_id text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    paused_at timestamp with time zone DEFAULT now() NOT NULL,
    paused_by text NOT NULL,
    pause_reason text NOT NULL,
    resumed_at timestamp with time zone,
    resumed_by text,
    resume_reason text,
    released boolean DEFAULT false NOT NULL,
    CONSTRAINT released_after_resume CHECK (((resumed_at IS NOT NULL) OR (NOT released))),
    CONSTRAINT resumed_whole CHECK ((((resumed_at IS NULL) = (resumed_by IS NULL)) AND ((resumed_at IS NULL) = (resume_reason IS NULL)))),
    CONSTRAINT scope_is_known CHECK ((scope = ANY (ARRAY['queue'::text, 'definition'::text, 'task'::text])))
);

ALTER TABLE public.pause ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.pause_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.pause_lock (
    never boolean NOT NULL,
    CONSTRAINT stays_empty CHECK (((NOT never) AND never))
);

CREATE TABLE public.pause_walk (
    only_one boolean DEFAULT true NOT NULL,
    turn bigint DEFAULT 0 NOT NULL,
    queue text DEFAULT ''::text NOT NULL,
    kind text DEFAULT ''::text NOT NULL,
    priority smallint DEFAULT 0 NOT NULL,
    scheduled_at timestamp with time zone DEFAULT '1970-01-01 00:00:00+00'::timestamp with time zone NOT NULL,
    job_id bigint DEFAULT 0 NOT NULL,
    pauses bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    locked bigint DEFAULT 0 NOT NULL,
    moved_at timestamp with time zone DEFAULT '1970-01-01 00:00:00+00'::timestamp with time zone NOT NULL,
    CONSTRAINT only_one_walk CHECK (only_one)
);

CREATE TABLE public.ready (
    job_id bigint NOT NULL,
    task_id uuid NOT NULL,
    place text NOT NULL COLLATE pg_catalog."C",
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    definition_id text NOT NULL COLLATE pg_catalog."C",
    urgent boolean NOT NULL,
    due_at timestamp with time zone NOT NULL,
    rank timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_cost_delay='0');

CREATE TABLE public.redrive_item (
    operation_id uuid NOT NULL,
    n integer NOT NULL,
    task_id uuid NOT NULL,
    state public.redrive_item_state DEFAULT 'WAITING'::public.redrive_item_state NOT NULL,
    seq integer,
    code text
)
WITH (fillfactor='70');

CREATE TABLE public.redrive_operation (
    operation_id uuid NOT NULL,
    tenant_id text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    state public.redrive_state NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    paced_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    rate integer NOT NULL,
    canary_count integer NOT NULL,
    canary_ratio double precision NOT NULL,
    matched integer NOT NULL,
    selection jsonb NOT NULL,
    input_patch jsonb,
    stopped_at timestamp with time zone,
    stopped_by text,
    stop_reason text,
    undone_at timestamp with time zone,
    undone_by text,
    undo_reason text,
    CONSTRAINT canary_in_range CHECK (((canary_count >= 0) AND ((canary_ratio >= (0)::double precision) AND (canary_ratio <= (1)::double precision)))),
    CONSTRAINT rate_positive CHECK ((rate > 0))
);

CREATE TABLE public.relay_leader (
    only_one boolean DEFAULT true NOT NULL,
    term bigint DEFAULT 0 NOT NULL,
    holder text DEFAULT ''::text NOT NULL,
    backend_pid integer,
    backend_start timestamp with time zone,
    heartbeat_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    CONSTRAINT only_one_leader CHECK (only_one)
);

CREATE TABLE public.river_job (
    id bigint NOT NULL,
    state public.river_job_state DEFAULT 'available'::public.river_job_state NOT NULL,
    attempt smallint DEFAULT 0 NOT NULL,
    max_attempts smallint DEFAULT 25 NOT NULL,
    attempted_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    finalized_at timestamp with time zone,
    scheduled_at timestamp with time zone DEFAULT now() NOT NULL,
    priority smallint DEFAULT 1 NOT NULL,
    args jsonb NOT NULL,
    attempted_by text[],
    errors jsonb[],
    kind text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    queue text DEFAULT 'default'::text NOT NULL,
    tags character varying(255)[] DEFAULT '{}'::character varying[] NOT NULL,
    unique_key bytea,
    unique_states bit(8),
    CONSTRAINT finalized_or_finalized_at_null CHECK ((((finalized_at IS NULL) AND (state <> ALL (ARRAY['cancelled'::public.river_job_state, 'completed'::public.river_job_state, 'discarded'::public.river_job_state]))) OR ((finalized_at IS NOT NULL) AND (state = ANY (ARRAY['cancelled'::public.river_job_state, 'completed'::public.river_job_state, 'discarded'::public.river_job_state]))))),
    CONSTRAINT kind_length CHECK (((char_length(kind) > 0) AND (char_length(kind) < 128))),
    CONSTRAINT max_attempts_is_positive CHECK ((max_attempts > 0)),
    CONSTRAINT priority_in_range CHECK (((priority >= 1) AND (priority <= 4))),
    CONSTRAINT queue_length CHECK (((char_length(queue) > 0) AND (char_length(queue) < 128)))
)
WITH (autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0.05');

CREATE SEQUENCE public.river_job_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.river_job_id_seq OWNED BY public.river_job.id;

CREATE UNLOGGED TABLE public.river_leader (
    elected_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    leader_id text NOT NULL,
    name text DEFAULT 'default'::text NOT NULL,
    CONSTRAINT leader_id_length CHECK (((char_length(leader_id) > 0) AND (char_length(leader_id) < 128))),
    CONSTRAINT name_length CHECK ((name = 'default'::text))
);

CREATE TABLE public.river_migration (
    line text NOT NULL,
    version bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT line_length CHECK (((char_length(line) > 0) AND (char_length(line) < 128))),
    CONSTRAINT version_gte_1 CHECK ((version >= 1))
);

CREATE TABLE public.river_notification (
    id bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    payload text NOT NULL,
    topic text NOT NULL,
    CONSTRAINT topic_length CHECK (((length(topic) > 0) AND (length(topic) < 128)))
);

CREATE SEQUENCE public.river_notification_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.river_notification_id_seq OWNED BY public.river_notification.id;

CREATE TABLE public.river_queue (
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    paused_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);

CREATE TABLE public.secret (
    name text NOT NULL,
    key bytea NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT key_long_enough CHECK ((length(key) >= 32))
);

CREATE TABLE public.shutdown_order (
    event_id text NOT NULL,
    said_at timestamp with time zone NOT NULL,
    target text NOT NULL,
    grace_seconds double precision,
    reason text NOT NULL,
    actor text NOT NULL,
    CONSTRAINT grace_not_negative CHECK ((grace_seconds >= (0)::double precision))
);

CREATE TABLE public.tally (
    type public.task_type NOT NULL,
    lane public.task_lane NOT NULL,
    event public.task_event_type NOT NULL,
    was public.task_status,
    now public.task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL
);

CREATE TABLE public.tally_delta (
    id bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    type public.task_type NOT NULL,
    lane public.task_lane NOT NULL,
    event public.task_event_type NOT NULL,
    was public.task_status,
    now public.task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000');

ALTER TABLE public.tally_delta ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.tally_delta_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.tally_hour (
    hour timestamp with time zone NOT NULL,
    type public.task_type NOT NULL,
    lane public.task_lane NOT NULL,
    event public.task_event_type NOT NULL,
    was public.task_status,
    now public.task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL
);

CREATE TABLE public.task (
    task_id uuid NOT NULL,
    job_id bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    next_retry_at timestamp with time zone,
    assigned_at timestamp with time zone,
    due_at timestamp with time zone,
    version integer DEFAULT 1 NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    status public.task_status DEFAULT 'PENDING'::public.task_status NOT NULL,
    type public.task_type NOT NULL,
    lane public.task_lane NOT NULL,
    revision integer NOT NULL,
    priority smallint NOT NULL,
    tenant_id text NOT NULL,
    workflow_id text NOT NULL COLLATE pg_catalog."C",
    definition_id text NOT NULL,
    executor text NOT NULL,
    correlation_id text NOT NULL,
    step_id text,
    assignee_id text COLLATE pg_catalog."C",
    assignee_name text,
    group_id text COLLATE pg_catalog."C",
    candidates jsonb,
    request_id text,
    reference text,
    callback_url text,
    traceparent text,
    input jsonb NOT NULL,
    output jsonb,
    error jsonb,
    config jsonb,
    context jsonb,
    open_for text[] GENERATED ALWAYS AS (
CASE
    WHEN (status = 'ASSIGNED'::public.task_status) THEN public.task_open_for(assignee_id, group_id, candidates)
    ELSE NULL::text[]
END) STORED,
    deadline_id bigint,
    own_definition boolean DEFAULT false NOT NULL,
    CONSTRAINT assigned_to_somebody CHECK (((status <> 'ASSIGNED'::public.task_status) OR (assignee_id IS NOT NULL) OR (group_id IS NOT NULL) OR (candidates IS NOT NULL))),
    CONSTRAINT attempt_not_negative CHECK (((attempt >= 0) AND (failures >= 0) AND (crashes >= 0))),
    CONSTRAINT ended_when_terminal CHECK (((ended_at IS NOT NULL) = (status = ANY (ARRAY['COMPLETED'::public.task_status, 'FAILED'::public.task_status, 'CANCELLED'::public.task_status, 'TIMED_OUT'::public.task_status])))),
    CONSTRAINT priority_in_range CHECK (((priority >= 1) AND (priority <= 4)))
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.02', autovacuum_analyze_scale_factor='0.05');
ALTER TABLE ONLY public.task ALTER COLUMN input SET COMPRESSION lz4;
ALTER TABLE ONLY public.task ALTER COLUMN output SET COMPRESSION lz4;
ALTER TABLE ONLY public.task ALTER COLUMN error SET COMPRESSION lz4;
ALTER TABLE ONLY public.task ALTER COLUMN config SET COMPRESSION lz4;
ALTER TABLE ONLY public.task ALTER COLUMN context SET COMPRESSION lz4;

CREATE TABLE public.task_attempt (
    task_id uuid NOT NULL,
    attempt integer NOT NULL,
    outcome public.attempt_outcome,
    job_id bigint NOT NULL,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    executor_id text NOT NULL,
    error jsonb,
    CONSTRAINT ended_with_outcome CHECK (((ended_at IS NULL) = (outcome IS NULL)))
);
ALTER TABLE ONLY public.task_attempt ALTER COLUMN error SET COMPRESSION lz4;

CREATE TABLE public.task_checkpoint (
    task_id uuid NOT NULL,
    attempt integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    progress jsonb,
    checkpoint jsonb
)
WITH (fillfactor='70');
ALTER TABLE ONLY public.task_checkpoint ALTER COLUMN progress SET COMPRESSION lz4;
ALTER TABLE ONLY public.task_checkpoint ALTER COLUMN checkpoint SET COMPRESSION lz4;

CREATE TABLE public.task_definition (
    definition_id text NOT NULL COLLATE pg_catalog."C",
    revision integer NOT NULL,
    type public.task_type NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    timeout_ms bigint NOT NULL,
    version text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    created_by text NOT NULL,
    input_schema jsonb,
    output_schema jsonb,
    retry_policy jsonb,
    execution_config jsonb NOT NULL,
    tenant_id text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    CONSTRAINT revision_positive CHECK ((revision > 0)),
    CONSTRAINT timeout_positive CHECK ((timeout_ms > 0))
);
ALTER TABLE ONLY public.task_definition ALTER COLUMN input_schema SET COMPRESSION lz4;
ALTER TABLE ONLY public.task_definition ALTER COLUMN output_schema SET COMPRESSION lz4;
ALTER TABLE ONLY public.task_definition ALTER COLUMN execution_config SET COMPRESSION lz4;

CREATE TABLE public.task_event (
    id bigint NOT NULL,
    task_id uuid NOT NULL,
    at timestamp with time zone NOT NULL,
    seq integer NOT NULL,
    attempt integer NOT NULL,
    type public.task_event_type NOT NULL,
    was public.task_status,
    now public.task_status NOT NULL,
    actor text NOT NULL,
    payload text
);
ALTER TABLE ONLY public.task_event ALTER COLUMN payload SET COMPRESSION lz4;

CREATE SEQUENCE public.task_event_id_seq
    START WITH 20000
    INCREMENT BY 20000
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE public.task_move (
    was public.task_status NOT NULL,
    now public.task_status NOT NULL,
    told_by text NOT NULL
);

CREATE TABLE public.task_open (
    tenant_id text NOT NULL,
    principal text NOT NULL COLLATE pg_catalog."C",
    priority smallint NOT NULL,
    due_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL,
    task_id uuid NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE public.task_request (
    tenant_id text NOT NULL,
    request_key text NOT NULL COLLATE pg_catalog."C",
    task_id uuid NOT NULL,
    created_at timestamp with time zone NOT NULL,
    body_hash bytea NOT NULL
);

CREATE TABLE public.worker (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    worker_id text NOT NULL COLLATE pg_catalog."C",
    queue text NOT NULL COLLATE pg_catalog."C",
    definition_ids text[] NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000');

CREATE VIEW report.attempt AS
 SELECT a.task_id,
    a.attempt,
    t.workflow_id,
    t.definition_id,
    t.type,
    a.executor_id,
    a.outcome,
    (a.error ->> 'code'::text) AS error_code,
    a.started_at,
    a.ended_at,
    EXTRACT(epoch FROM (a.ended_at - a.started_at)) AS run_seconds,
        CASE
            WHEN t.own_definition THEN t.tenant_id
            ELSE ''::text
        END AS definition_tenant_id
   FROM (public.task_attempt a
     JOIN public.task t ON ((t.task_id = a.task_id)));

COMMENT ON VIEW report.attempt IS 'One row an attempt: who ran it, how long, how it ended.';

COMMENT ON COLUMN report.attempt.task_id IS 'the task (UUIDv7, so it sorts by creation)';

COMMENT ON COLUMN report.attempt.attempt IS 'which attempt, from 1';

COMMENT ON COLUMN report.attempt.workflow_id IS 'the workflow it belongs to';

COMMENT ON COLUMN report.attempt.definition_id IS 'the task definition';

COMMENT ON COLUMN report.attempt.type IS 'AUTOMATED, INTEGRATION or MANUAL';

COMMENT ON COLUMN report.attempt.executor_id IS 'the process, worker or person';

COMMENT ON COLUMN report.attempt.outcome IS 'how the attempt ended; null while it runs';

COMMENT ON COLUMN report.attempt.error_code IS 'code of the last error';

COMMENT ON COLUMN report.attempt.started_at IS 'when the attempt began';

COMMENT ON COLUMN report.attempt.ended_at IS 'when it ended';

COMMENT ON COLUMN report.attempt.run_seconds IS 'how long the attempt took';

COMMENT ON COLUMN report.attempt.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';

CREATE VIEW report.callback AS
 SELECT c.task_id,
    t.workflow_id,
    t.definition_id,
    c.host,
    'WAITING'::text AS state,
    (c.told + 1) AS seq,
    c.tries,
    c.since,
    c.due_at AS next_try_at,
    NULL::timestamp with time zone AS given_up_at,
    c.problem
   FROM (public.callback c
     JOIN public.task t ON ((t.task_id = c.task_id)))
UNION ALL
 SELECT g.task_id,
    t.workflow_id,
    t.definition_id,
    g.host,
    'GIVEN_UP'::text AS state,
    g.seq,
    g.tries,
    e.at AS since,
    NULL::timestamp with time zone AS next_try_at,
    g.at AS given_up_at,
    g.problem
   FROM ((public.callback_given_up g
     JOIN public.task t ON ((t.task_id = g.task_id)))
     JOIN public.task_event e ON (((e.task_id = g.task_id) AND (e.seq = g.seq))));

COMMENT ON VIEW report.callback IS 'Status updates that a callback address has not taken: one row a task that waits, one row an update that was given up.';

COMMENT ON COLUMN report.callback.task_id IS 'the task';

COMMENT ON COLUMN report.callback.workflow_id IS 'the workflow it belongs to';

COMMENT ON COLUMN report.callback.definition_id IS 'the task definition';

COMMENT ON COLUMN report.callback.host IS 'host and port of its callback address';

COMMENT ON COLUMN report.callback.state IS 'WAITING or GIVEN_UP';

COMMENT ON COLUMN report.callback.seq IS 'number of the move: the first that may wait, or the one that was given up';

COMMENT ON COLUMN report.callback.tries IS 'how often it was posted in vain';

COMMENT ON COLUMN report.callback.since IS 'when it happened';

COMMENT ON COLUMN report.callback.next_try_at IS 'when it is due; while it is on its way, when it would be tried anew';

COMMENT ON COLUMN report.callback.given_up_at IS 'when it was given up';

COMMENT ON COLUMN report.callback.problem IS 'why the last try was in vain';

CREATE VIEW report.dead_letter AS
 SELECT t.task_id,
    t.workflow_id,
    t.definition_id,
    t.type,
    t.status,
    (t.error ->> 'code'::text) AS error_code,
    "left"((t.error ->> 'message'::text), 200) AS error_message,
    t.attempt AS attempts,
    t.ended_at AS died_at,
    t.job_id,
    report.failure_fingerprint(t.definition_id, (t.error ->> 'code'::text), (t.error ->> 'message'::text)) AS fingerprint,
        CASE
            WHEN t.own_definition THEN t.tenant_id
            ELSE ''::text
        END AS definition_tenant_id
   FROM (public.river_job j
     JOIN public.task t ON (((t.task_id = public.job_task(j.args)) AND (t.job_id = j.id))))
  WHERE ((j.queue = 'task-execution-deadletter'::text) AND (j.state = ANY (ARRAY['available'::public.river_job_state, 'running'::public.river_job_state])));

COMMENT ON VIEW report.dead_letter IS 'Tasks that ended for good without success and wait for somebody to look.';

COMMENT ON COLUMN report.dead_letter.task_id IS 'the task (UUIDv7, so it sorts by creation)';

COMMENT ON COLUMN report.dead_letter.workflow_id IS 'the workflow it belongs to';

COMMENT ON COLUMN report.dead_letter.definition_id IS 'the task definition';

COMMENT ON COLUMN report.dead_letter.type IS 'AUTOMATED, INTEGRATION or MANUAL';

COMMENT ON COLUMN report.dead_letter.status IS 'where the task stands';

COMMENT ON COLUMN report.dead_letter.error_code IS 'code of the last error';

COMMENT ON COLUMN report.dead_letter.error_message IS 'message of the last error, cut at 200 characters';

COMMENT ON COLUMN report.dead_letter.attempts IS 'attempts begun';

COMMENT ON COLUMN report.dead_letter.died_at IS 'when the task ended';

COMMENT ON COLUMN report.dead_letter.job_id IS 'its token in river_job';

COMMENT ON COLUMN report.dead_letter.fingerprint IS 'the same for alike failures: see report.failure_fingerprint';

COMMENT ON COLUMN report.dead_letter.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';

CREATE VIEW report.event AS
 SELECT e.task_id,
    e.seq,
    e.type AS move,
        CASE
            WHEN (e.type <> ALL (ARRAY['released'::public.task_event_type, 'redriven'::public.task_event_type])) THEN report.event_id(e.task_id, e.seq)
            ELSE NULL::uuid
        END AS event_id,
        CASE e.type
            WHEN 'assigned'::public.task_event_type THEN 'task.manual.assigned'::text
            WHEN 'released'::public.task_event_type THEN NULL::text
            WHEN 'redriven'::public.task_event_type THEN NULL::text
            ELSE ('task.'::text || e.type)
        END AS subject,
    e.was,
    e.now,
    e.attempt,
    e.actor,
    e.at,
    t.workflow_id,
    t.type,
    t.correlation_id,
    a.executor_id,
    (a.error ->> 'code'::text) AS error_code,
    (e.id < COALESCE(( SELECT min(o.lo) AS min
           FROM public.outbox o), (e.id + 1))) AS surely_published
   FROM ((public.task_event e
     JOIN public.task t ON ((t.task_id = e.task_id)))
     LEFT JOIN public.task_attempt a ON (((a.task_id = e.task_id) AND (a.attempt = e.attempt))));

COMMENT ON VIEW report.event IS 'The audit trail: every move of every task, in order of seq.';

COMMENT ON COLUMN report.event.task_id IS 'the task (UUIDv7, so it sorts by creation)';

COMMENT ON COLUMN report.event.seq IS 'number of the move within the task, from 1';

COMMENT ON COLUMN report.event.move IS 'what happened';

COMMENT ON COLUMN report.event.event_id IS 'id of the event on the bus; null if the move is not told';

COMMENT ON COLUMN report.event.subject IS 'subject on the bus; null if the move is not told';

COMMENT ON COLUMN report.event.was IS 'status before the move; null for the first';

COMMENT ON COLUMN report.event.now IS 'status after the move';

COMMENT ON COLUMN report.event.attempt IS 'which attempt, from 1';

COMMENT ON COLUMN report.event.actor IS 'who moved it';

COMMENT ON COLUMN report.event.at IS 'when';

COMMENT ON COLUMN report.event.workflow_id IS 'the workflow it belongs to';

COMMENT ON COLUMN report.event.type IS 'AUTOMATED, INTEGRATION or MANUAL';

COMMENT ON COLUMN report.event.correlation_id IS 'the orchestrator''s correlation id';

COMMENT ON COLUMN report.event.executor_id IS 'the process, worker or person';

COMMENT ON COLUMN report.event.error_code IS 'code of the last error';

COMMENT ON COLUMN report.event.surely_published IS 'true once nothing as old waits in the outbox';

CREATE VIEW report.maintenance AS
 SELECT m.lane,
    m.since,
    m.until,
    ((m.until IS NULL) OR (m.until > now())) AS in_force,
    m.reason,
    m.actor
   FROM public.maintenance m;

COMMENT ON VIEW report.maintenance IS 'The newest word on the maintenance of each lane; lanes never heard of are missing.';

COMMENT ON COLUMN report.maintenance.lane IS 'the queue that gives nothing out while it is in force';

COMMENT ON COLUMN report.maintenance.since IS 'when it began';

COMMENT ON COLUMN report.maintenance.until IS 'when it ends or ended; null while nobody knows';

COMMENT ON COLUMN report.maintenance.in_force IS 'whether it holds at this moment';

COMMENT ON COLUMN report.maintenance.reason IS 'why, in the words of who asked';

COMMENT ON COLUMN report.maintenance.actor IS 'who asked last';

CREATE VIEW report.maintenance_change AS
 SELECT c.at,
    c.lane,
    c.enabled,
    c.until,
    c.reason,
    c.actor,
    c.event_id
   FROM public.maintenance_change c;

COMMENT ON VIEW report.maintenance_change IS 'Who put lanes into maintenance and took them out, and when.';

COMMENT ON COLUMN report.maintenance_change.at IS 'when the bus had the message';

COMMENT ON COLUMN report.maintenance_change.lane IS 'the queue';

COMMENT ON COLUMN report.maintenance_change.enabled IS 'true: into maintenance; false: out of it';

COMMENT ON COLUMN report.maintenance_change.until IS 'when it was to end by itself; null for never';

COMMENT ON COLUMN report.maintenance_change.reason IS 'why, in the words of who asked';

COMMENT ON COLUMN report.maintenance_change.actor IS 'who asked';

COMMENT ON COLUMN report.maintenance_change.event_id IS 'the id of the message';

CREATE VIEW report.notice AS
 SELECT n.notice_id,
    n.task_id,
    n.what,
    n.percent,
    n.user_id,
    n.outcome,
    n.channel,
    n.tries,
    n.detail,
    n.at,
    n.settled_at
   FROM public.notice n;

COMMENT ON VIEW report.notice IS 'What people were told of their tasks in the last 30 days, by which channel, or why not.';

COMMENT ON COLUMN report.notice.notice_id IS 'the notice; its job in river_job has the same id';

COMMENT ON COLUMN report.notice.task_id IS 'the task';

COMMENT ON COLUMN report.notice.what IS 'assigned, reminder, overdue (to whoever has the task) or escalated (to those whom the definition names)';

COMMENT ON COLUMN report.notice.percent IS 'how much of the time to the due date was over';

COMMENT ON COLUMN report.notice.user_id IS 'who was to be told';

COMMENT ON COLUMN report.notice.outcome IS 'waiting, sent, refused (by every channel), moot (the task had gone on), off (there is no Notification Service)';

COMMENT ON COLUMN report.notice.channel IS 'by which it was sent';

COMMENT ON COLUMN report.notice.tries IS 'how often it was tried, all channels each time';

COMMENT ON COLUMN report.notice.detail IS 'what came of the last try';

COMMENT ON COLUMN report.notice.at IS 'when it was due to be told';

COMMENT ON COLUMN report.notice.settled_at IS 'when that ended; null while it waits';

CREATE VIEW report.pause AS
 SELECT p.scope,
    p.name,
    p.tenant_id,
    (p.resumed_at IS NULL) AS in_force,
    p.paused_at,
    p.paused_by,
    p.pause_reason,
    p.resumed_at,
    p.resumed_by,
    p.resume_reason
   FROM public.pause p;

COMMENT ON VIEW report.pause IS 'One row a pause of a queue, a definition or a task: who paused and resumed it, when and why.';

COMMENT ON COLUMN report.pause.scope IS 'queue, definition or task';

COMMENT ON COLUMN report.pause.name IS 'the queue, or the id of the definition or the task';

COMMENT ON COLUMN report.pause.tenant_id IS 'the tenant whose tasks it holds back; empty: of a queue, all; of a definition, all that use the platform''s';

COMMENT ON COLUMN report.pause.in_force IS 'true until it is resumed';

COMMENT ON COLUMN report.pause.paused_at IS 'since when';

COMMENT ON COLUMN report.pause.paused_by IS 'who: a caller of the API, river-ui: and a caller, or role: and a role of the database';

COMMENT ON COLUMN report.pause.pause_reason IS 'why; empty where nobody said';

COMMENT ON COLUMN report.pause.resumed_at IS 'until when; null while it is in force';

COMMENT ON COLUMN report.pause.resumed_by IS 'who resumed it';

COMMENT ON COLUMN report.pause.resume_reason IS 'why it was resumed; empty where nobody said';

CREATE VIEW report.queue AS
 SELECT q.name AS lane,
    (ARRAY['CRITICAL'::text, 'HIGH'::text, 'MEDIUM'::text, 'LOW'::text])[j.priority] AS priority,
    COALESCE(j.waiting, (0)::bigint) AS waiting,
    COALESCE(j.scheduled, (0)::bigint) AS scheduled,
    COALESCE(j.running, (0)::bigint) AS running,
    COALESCE(EXTRACT(epoch FROM (now() - j.oldest)), (0)::numeric) AS oldest_seconds,
    q.paused_at
   FROM (public.river_queue q
     LEFT JOIN ( SELECT r.queue,
            r.priority,
            count(*) FILTER (WHERE ((r.state = 'available'::public.river_job_state) AND (r.scheduled_at <= now()))) AS waiting,
            count(*) FILTER (WHERE ((r.state = ANY (ARRAY['scheduled'::public.river_job_state, 'retryable'::public.river_job_state])) OR ((r.state = 'available'::public.river_job_state) AND (r.scheduled_at > now())))) AS scheduled,
            count(*) FILTER (WHERE (r.state = 'running'::public.river_job_state)) AS running,
            min(r.scheduled_at) FILTER (WHERE ((r.state = 'available'::public.river_job_state) AND (r.scheduled_at <= now()))) AS oldest
           FROM public.river_job r
          WHERE (r.state = ANY (ARRAY['available'::public.river_job_state, 'pending'::public.river_job_state, 'retryable'::public.river_job_state, 'running'::public.river_job_state, 'scheduled'::public.river_job_state]))
          GROUP BY r.queue, r.priority) j ON ((j.queue = q.name)))
  WHERE (q.name ~~ 'task-execution-%'::text);

COMMENT ON VIEW report.queue IS 'Depth and age of each lane by priority. Counts every waiting job: seconds at millions.';

COMMENT ON COLUMN report.queue.lane IS 'the queue it is or was last in';

COMMENT ON COLUMN report.queue.priority IS 'CRITICAL, HIGH, MEDIUM or LOW';

COMMENT ON COLUMN report.queue.waiting IS 'jobs that could be taken now';

COMMENT ON COLUMN report.queue.scheduled IS 'jobs with a later time';

COMMENT ON COLUMN report.queue.running IS 'jobs taken';

COMMENT ON COLUMN report.queue.oldest_seconds IS 'how long the oldest has waited';

COMMENT ON COLUMN report.queue.paused_at IS 'since when the lane is paused';

CREATE VIEW report.task AS
 SELECT t.task_id,
    t.workflow_id,
    t.step_id,
    t.definition_id,
    t.type,
    t.status,
    (ARRAY['CRITICAL'::text, 'HIGH'::text, 'MEDIUM'::text, 'LOW'::text])[t.priority] AS priority,
    t.lane,
    t.tenant_id,
    t.correlation_id,
    t.assignee_id,
    t.group_id,
    t.attempt AS attempts,
    t.failures,
    t.crashes,
    (t.error ->> 'code'::text) AS error_code,
    t.created_at,
    t.started_at,
    t.ended_at,
    t.next_retry_at,
    t.due_at,
    EXTRACT(epoch FROM (t.ended_at - t.created_at)) AS total_seconds,
        CASE
            WHEN t.own_definition THEN t.tenant_id
            ELSE ''::text
        END AS definition_tenant_id
   FROM public.task t;

COMMENT ON VIEW report.task IS 'One row a task, without its payloads.';

COMMENT ON COLUMN report.task.task_id IS 'the task (UUIDv7, so it sorts by creation)';

COMMENT ON COLUMN report.task.workflow_id IS 'the workflow it belongs to';

COMMENT ON COLUMN report.task.step_id IS 'the workflow''s step, if the orchestrator named it';

COMMENT ON COLUMN report.task.definition_id IS 'the task definition';

COMMENT ON COLUMN report.task.type IS 'AUTOMATED, INTEGRATION or MANUAL';

COMMENT ON COLUMN report.task.status IS 'where the task stands';

COMMENT ON COLUMN report.task.priority IS 'CRITICAL, HIGH, MEDIUM or LOW';

COMMENT ON COLUMN report.task.lane IS 'the queue it is or was last in';

COMMENT ON COLUMN report.task.tenant_id IS 'the tenant, empty if none';

COMMENT ON COLUMN report.task.correlation_id IS 'the orchestrator''s correlation id';

COMMENT ON COLUMN report.task.assignee_id IS 'the person it is assigned to';

COMMENT ON COLUMN report.task.group_id IS 'the group that may claim it';

COMMENT ON COLUMN report.task.attempts IS 'attempts begun';

COMMENT ON COLUMN report.task.failures IS 'attempts that reported a failure';

COMMENT ON COLUMN report.task.crashes IS 'attempts whose lease expired';

COMMENT ON COLUMN report.task.error_code IS 'code of the last error';

COMMENT ON COLUMN report.task.created_at IS 'when the task was accepted';

COMMENT ON COLUMN report.task.started_at IS 'when the attempt began';

COMMENT ON COLUMN report.task.ended_at IS 'when it ended';

COMMENT ON COLUMN report.task.next_retry_at IS 'when the next attempt is due';

COMMENT ON COLUMN report.task.due_at IS 'when a person should be done';

COMMENT ON COLUMN report.task.total_seconds IS 'from acceptance to the end';

COMMENT ON COLUMN report.task.definition_tenant_id IS 'whose the task definition is; empty: the platform''s';

CREATE VIEW report.throughput_by_hour AS
 SELECT h.hour,
    h.type,
    (COALESCE(sum(h.n) FILTER (WHERE (h.event = 'created'::public.task_event_type)), (0)::numeric))::bigint AS created,
    (COALESCE(sum(h.n) FILTER (WHERE (h.now = 'COMPLETED'::public.task_status)), (0)::numeric))::bigint AS completed,
    (COALESCE(sum(h.n) FILTER (WHERE ((h.now = ANY (ARRAY['FAILED'::public.task_status, 'TIMED_OUT'::public.task_status])) AND (h.event = 'failed'::public.task_event_type))), (0)::numeric))::bigint AS failed,
    (COALESCE(sum(h.n) FILTER (WHERE (h.now = 'CANCELLED'::public.task_status)), (0)::numeric))::bigint AS cancelled,
    (COALESCE(sum(h.n) FILTER (WHERE (h.event = 'retry'::public.task_event_type)), (0)::numeric))::bigint AS retried,
    round((sum(h.run_ms) FILTER (WHERE (h.now = 'COMPLETED'::public.task_status)) / NULLIF(sum(h.n) FILTER (WHERE (h.now = 'COMPLETED'::public.task_status)), (0)::numeric)), 3) AS average_run_ms
   FROM public.tally_hour h
  GROUP BY h.hour, h.type;

COMMENT ON VIEW report.throughput_by_hour IS 'What happened in each hour (UTC), by type; at most a few seconds behind.';

COMMENT ON COLUMN report.throughput_by_hour.hour IS 'start of the hour, UTC';

COMMENT ON COLUMN report.throughput_by_hour.type IS 'AUTOMATED, INTEGRATION or MANUAL';

COMMENT ON COLUMN report.throughput_by_hour.created IS 'tasks accepted';

COMMENT ON COLUMN report.throughput_by_hour.completed IS 'tasks that ended well';

COMMENT ON COLUMN report.throughput_by_hour.failed IS 'tasks that failed or timed out for good';

COMMENT ON COLUMN report.throughput_by_hour.cancelled IS 'tasks cancelled';

COMMENT ON COLUMN report.throughput_by_hour.retried IS 'retries scheduled';

COMMENT ON COLUMN report.throughput_by_hour.average_run_ms IS 'mean time of the attempts that completed, in ms';

ALTER TABLE ONLY public.river_job ALTER COLUMN id SET DEFAULT nextval('public.river_job_id_seq'::regclass);

ALTER TABLE ONLY public.river_notification ALTER COLUMN id SET DEFAULT nextval('public.river_notification_id_seq'::regclass);

ALTER TABLE ONLY public.call_answer
    ADD CONSTRAINT call_answer_pkey PRIMARY KEY (tenant_id, caller, operation, call_key);

ALTER TABLE ONLY public.callback_given_up
    ADD CONSTRAINT callback_given_up_pkey PRIMARY KEY (task_id, seq);

ALTER TABLE ONLY public.callback
    ADD CONSTRAINT callback_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY public.dead_letter_discard
    ADD CONSTRAINT dead_letter_discard_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY public.dequeue_turn
    ADD CONSTRAINT dequeue_turn_pkey PRIMARY KEY (tenant_id, owner, request_id);

ALTER TABLE ONLY public.event_unknown
    ADD CONSTRAINT event_unknown_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY public.executor
    ADD CONSTRAINT executor_pkey PRIMARY KEY (executor_id);

ALTER TABLE ONLY public.goose_db_version
    ADD CONSTRAINT goose_db_version_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.inbound
    ADD CONSTRAINT inbound_pkey PRIMARY KEY (subject);

ALTER TABLE ONLY public.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY public.job_signal
    ADD CONSTRAINT job_signal_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.lease
    ADD CONSTRAINT lease_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY public.maintenance_change
    ADD CONSTRAINT maintenance_change_pkey PRIMARY KEY (event_id, lane);

ALTER TABLE ONLY public.maintenance
    ADD CONSTRAINT maintenance_pkey PRIMARY KEY (lane);

ALTER TABLE ONLY public.notice
    ADD CONSTRAINT notice_pkey PRIMARY KEY (notice_id);

ALTER TABLE ONLY public.task_event
    ADD CONSTRAINT one_event_a_move UNIQUE (task_id, seq);

ALTER TABLE ONLY public.outbox_parked
    ADD CONSTRAINT outbox_parked_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_published
    ADD CONSTRAINT outbox_published_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_stream
    ADD CONSTRAINT outbox_stream_pkey PRIMARY KEY (only_one);

ALTER TABLE ONLY public.pause
    ADD CONSTRAINT pause_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.pause_walk
    ADD CONSTRAINT pause_walk_pkey PRIMARY KEY (only_one);

ALTER TABLE ONLY public.ready
    ADD CONSTRAINT ready_pkey PRIMARY KEY (job_id);

ALTER TABLE ONLY public.redrive_item
    ADD CONSTRAINT redrive_item_pkey PRIMARY KEY (operation_id, n);

ALTER TABLE ONLY public.redrive_operation
    ADD CONSTRAINT redrive_operation_pkey PRIMARY KEY (operation_id);

ALTER TABLE ONLY public.relay_leader
    ADD CONSTRAINT relay_leader_pkey PRIMARY KEY (only_one);

ALTER TABLE ONLY public.river_job
    ADD CONSTRAINT river_job_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.river_leader
    ADD CONSTRAINT river_leader_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.river_migration
    ADD CONSTRAINT river_migration_pkey1 PRIMARY KEY (line, version);

ALTER TABLE ONLY public.river_notification
    ADD CONSTRAINT river_notification_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.river_queue
    ADD CONSTRAINT river_queue_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.secret
    ADD CONSTRAINT secret_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.shutdown_order
    ADD CONSTRAINT shutdown_order_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY public.tally_delta
    ADD CONSTRAINT tally_delta_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.tally_hour
    ADD CONSTRAINT tally_hour_key UNIQUE NULLS NOT DISTINCT (hour, type, lane, event, was, now);

ALTER TABLE ONLY public.tally
    ADD CONSTRAINT tally_key UNIQUE NULLS NOT DISTINCT (type, lane, event, was, now);

ALTER TABLE ONLY public.task_attempt
    ADD CONSTRAINT task_attempt_pkey PRIMARY KEY (task_id, attempt);

ALTER TABLE ONLY public.task_checkpoint
    ADD CONSTRAINT task_checkpoint_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY public.task_definition
    ADD CONSTRAINT task_definition_pkey PRIMARY KEY (tenant_id, definition_id, revision);

ALTER TABLE ONLY public.task_event
    ADD CONSTRAINT task_event_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.task_move
    ADD CONSTRAINT task_move_pkey PRIMARY KEY (was, now);

ALTER TABLE ONLY public.task_open
    ADD CONSTRAINT task_open_pkey PRIMARY KEY (tenant_id, principal, priority, due_at, created_at, task_id);

ALTER TABLE ONLY public.task
    ADD CONSTRAINT task_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY public.task_request
    ADD CONSTRAINT task_request_pkey PRIMARY KEY (tenant_id, request_key);

ALTER TABLE ONLY public.worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (tenant_id, worker_id, queue);

CREATE INDEX call_answer_at ON public.call_answer USING btree (at);

CREATE INDEX callback_due ON public.callback USING btree (host, due_at);

CREATE INDEX callback_since ON public.callback USING btree (since);

CREATE INDEX lease_expires_at ON public.lease USING btree (expires_at);

CREATE INDEX lease_request ON public.lease USING btree (owner, request_id) WHERE (request_id IS NOT NULL);

CREATE INDEX notice_settled_at ON public.notice USING btree (settled_at);

CREATE INDEX notice_task ON public.notice USING btree (task_id);

CREATE INDEX outbox_published_last_seq ON public.outbox_published USING btree (last_seq);

CREATE UNIQUE INDEX pause_in_force ON public.pause USING btree (scope, name, tenant_id) WHERE (resumed_at IS NULL);

CREATE INDEX pause_subject ON public.pause USING btree (scope, name, tenant_id, id);

CREATE INDEX pause_unreleased ON public.pause USING btree (id) WHERE ((resumed_at IS NOT NULL) AND (NOT released));

CREATE INDEX ready_order ON public.ready USING btree (place, tenant_id, definition_id, urgent, rank);

CREATE INDEX redrive_open ON public.redrive_operation USING btree (paced_at) WHERE (state = ANY (ARRAY['CANARY'::public.redrive_state, 'RUNNING'::public.redrive_state]));

CREATE INDEX river_job_notice_index ON public.river_job USING btree (priority, scheduled_at, id) WHERE ((state = 'available'::public.river_job_state) AND (queue = 'task-notices'::text));

CREATE INDEX river_job_prioritized_fetching_index ON public.river_job USING btree (state, queue, kind, priority, scheduled_at, id) WHERE (state = ANY (ARRAY['available'::public.river_job_state, 'pending'::public.river_job_state, 'retryable'::public.river_job_state, 'running'::public.river_job_state, 'scheduled'::public.river_job_state]));

CREATE INDEX river_job_schedule_index ON public.river_job USING btree (priority, scheduled_at, id) WHERE (state = ANY (ARRAY['retryable'::public.river_job_state, 'scheduled'::public.river_job_state]));

CREATE INDEX river_job_state_and_finalized_at_index ON public.river_job USING btree (state, finalized_at) WHERE (finalized_at IS NOT NULL);

CREATE UNIQUE INDEX river_job_unique_idx ON public.river_job USING btree (unique_key) WHERE ((unique_key IS NOT NULL) AND (unique_states IS NOT NULL) AND public.river_job_state_in_bitmask(unique_states, state));

CREATE INDEX river_notification_created_at_idx ON public.river_notification USING btree (created_at);

CREATE INDEX river_notification_topic_id_idx ON public.river_notification USING btree (topic, id);

CREATE INDEX task_assignee ON public.task USING btree (assignee_id, task_id) WHERE (assignee_id IS NOT NULL);

CREATE INDEX task_open_for ON public.task USING gin (open_for) WITH (fastupdate=off) WHERE (open_for IS NOT NULL);

CREATE INDEX task_open_task ON public.task_open USING btree (task_id);

CREATE INDEX task_workflow ON public.task USING btree (workflow_id, task_id);

CREATE INDEX worker_seen_at ON public.worker USING btree (seen_at);

CREATE TRIGGER job_signal_delete AFTER DELETE ON public.river_job FOR EACH ROW WHEN (((old.state <> ALL (ARRAY['completed'::public.river_job_state, 'cancelled'::public.river_job_state, 'discarded'::public.river_job_state])) AND (old.kind ~~ 'task.%'::text) AND (current_setting('tes.actor'::text, true) IS DISTINCT FROM 'engine'::text))) EXECUTE FUNCTION public.job_signal_note();

CREATE TRIGGER job_signal_update AFTER UPDATE ON public.river_job FOR EACH ROW WHEN (((((new.state = ANY (ARRAY['cancelled'::public.river_job_state, 'discarded'::public.river_job_state])) AND (old.state <> ALL (ARRAY['completed'::public.river_job_state, 'cancelled'::public.river_job_state, 'discarded'::public.river_job_state]))) OR ((new.state = 'running'::public.river_job_state) AND (new.metadata ? 'cancel_attempted_at'::text) AND (NOT (old.metadata ? 'cancel_attempted_at'::text)))) AND (new.kind ~~ 'task.%'::text) AND (current_setting('tes.actor'::text, true) IS DISTINCT FROM 'engine'::text))) EXECUTE FUNCTION public.job_signal_note();

CREATE TRIGGER pause_queue_delete AFTER DELETE ON public.river_queue FOR EACH ROW WHEN ((old.paused_at IS NOT NULL)) EXECUTE FUNCTION public.pause_note_queue();

CREATE TRIGGER pause_queue_insert AFTER INSERT ON public.river_queue FOR EACH ROW WHEN ((new.paused_at IS NOT NULL)) EXECUTE FUNCTION public.pause_note_queue();

CREATE TRIGGER pause_queue_update AFTER UPDATE OF paused_at ON public.river_queue FOR EACH ROW WHEN (((old.paused_at IS NULL) <> (new.paused_at IS NULL))) EXECUTE FUNCTION public.pause_note_queue();

CREATE TRIGGER ready_delete AFTER DELETE ON public.river_job FOR EACH ROW WHEN (((old.kind = ANY (ARRAY['task.worker'::text, 'task.deadletter'::text])) AND (old.state = 'available'::public.river_job_state))) EXECUTE FUNCTION public.ready_follow();

ALTER TABLE public.river_job ENABLE ALWAYS TRIGGER ready_delete;

CREATE TRIGGER ready_insert AFTER INSERT ON public.river_job FOR EACH ROW WHEN (((new.kind = ANY (ARRAY['task.worker'::text, 'task.deadletter'::text])) AND (new.state = 'available'::public.river_job_state))) EXECUTE FUNCTION public.ready_follow();

ALTER TABLE public.river_job ENABLE ALWAYS TRIGGER ready_insert;

CREATE TRIGGER ready_truncate AFTER TRUNCATE ON public.river_job FOR EACH STATEMENT EXECUTE FUNCTION public.ready_empty();

ALTER TABLE public.river_job ENABLE ALWAYS TRIGGER ready_truncate;

CREATE TRIGGER ready_update AFTER UPDATE ON public.river_job FOR EACH ROW WHEN ((((old.kind = ANY (ARRAY['task.worker'::text, 'task.deadletter'::text])) OR (new.kind = ANY (ARRAY['task.worker'::text, 'task.deadletter'::text]))) AND ((old.state = 'available'::public.river_job_state) OR (new.state = 'available'::public.river_job_state)) AND ((((((old.state IS DISTINCT FROM new.state) OR (old.kind IS DISTINCT FROM new.kind)) OR (old.queue IS DISTINCT FROM new.queue)) OR (old.priority IS DISTINCT FROM new.priority)) OR (old.scheduled_at IS DISTINCT FROM new.scheduled_at)) OR (old.args IS DISTINCT FROM new.args)))) EXECUTE FUNCTION public.ready_follow();

ALTER TABLE public.river_job ENABLE ALWAYS TRIGGER ready_update;

CREATE TRIGGER task_attempt_guard BEFORE DELETE ON public.task_attempt FOR EACH ROW WHEN (((old.outcome IS NOT NULL) OR (current_setting('tes.actor'::text, true) IS DISTINCT FROM 'engine'::text))) EXECUTE FUNCTION public.task_attempt_guard();

CREATE TRIGGER task_event_guard AFTER INSERT ON public.task_event REFERENCING NEW TABLE AS new_event FOR EACH STATEMENT WHEN ((current_setting('is_superuser'::text) = 'off'::text)) EXECUTE FUNCTION public.task_event_guard();

CREATE TRIGGER task_guard_delete BEFORE DELETE ON public.task FOR EACH ROW WHEN ((current_setting('tes.actor'::text, true) IS DISTINCT FROM 'engine'::text)) EXECUTE FUNCTION public.task_guard();

CREATE TRIGGER task_guard_update BEFORE UPDATE ON public.task FOR EACH ROW WHEN (((current_setting('tes.actor'::text, true) IS DISTINCT FROM 'engine'::text) OR (NOT public.task_move_legal(old.status, new.status, (new.version - old.version))) OR ((old.ended_at IS NOT NULL) AND (old.version = new.version) AND ((((((((((((((((old.ended_at IS DISTINCT FROM new.ended_at) OR (old.started_at IS DISTINCT FROM new.started_at)) OR (old.next_retry_at IS DISTINCT FROM new.next_retry_at)) OR (old.assigned_at IS DISTINCT FROM new.assigned_at)) OR (old.due_at IS DISTINCT FROM new.due_at)) OR (old.attempt IS DISTINCT FROM new.attempt)) OR (old.failures IS DISTINCT FROM new.failures)) OR (old.crashes IS DISTINCT FROM new.crashes)) OR (old.lane IS DISTINCT FROM new.lane)) OR (old.assignee_id IS DISTINCT FROM new.assignee_id)) OR (old.assignee_name IS DISTINCT FROM new.assignee_name)) OR (old.group_id IS DISTINCT FROM new.group_id)) OR (old.candidates IS DISTINCT FROM new.candidates)) OR (old.input IS DISTINCT FROM new.input)) OR (old.output IS DISTINCT FROM new.output)) OR (old.error IS DISTINCT FROM new.error))))) EXECUTE FUNCTION public.task_guard();

CREATE TRIGGER task_guard_update_fixed BEFORE UPDATE OF task_id, created_at, type, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, step_id, request_id, reference, callback_url, traceparent, config, context, own_definition ON public.task FOR EACH ROW WHEN (((((((((((((((((((old.task_id IS DISTINCT FROM new.task_id) OR (old.created_at IS DISTINCT FROM new.created_at)) OR (old.type IS DISTINCT FROM new.type)) OR (old.revision IS DISTINCT FROM new.revision)) OR (old.priority IS DISTINCT FROM new.priority)) OR (old.tenant_id IS DISTINCT FROM new.tenant_id)) OR (old.workflow_id IS DISTINCT FROM new.workflow_id)) OR (old.definition_id IS DISTINCT FROM new.definition_id)) OR (old.executor IS DISTINCT FROM new.executor)) OR (old.correlation_id IS DISTINCT FROM new.correlation_id)) OR (old.step_id IS DISTINCT FROM new.step_id)) OR (old.request_id IS DISTINCT FROM new.request_id)) OR (old.reference IS DISTINCT FROM new.reference)) OR (old.callback_url IS DISTINCT FROM new.callback_url)) OR (old.traceparent IS DISTINCT FROM new.traceparent)) OR (old.config IS DISTINCT FROM new.config)) OR (old.context IS DISTINCT FROM new.context)) OR (old.own_definition IS DISTINCT FROM new.own_definition))) EXECUTE FUNCTION public.task_guard_fixed();

CREATE TRIGGER task_open_delete AFTER DELETE ON public.task FOR EACH ROW WHEN ((old.open_for IS NOT NULL)) EXECUTE FUNCTION public.task_open_note();

CREATE TRIGGER task_open_insert AFTER INSERT ON public.task FOR EACH ROW WHEN ((new.open_for IS NOT NULL)) EXECUTE FUNCTION public.task_open_note();

CREATE TRIGGER task_open_update AFTER UPDATE ON public.task FOR EACH ROW WHEN (((old.open_for IS DISTINCT FROM new.open_for) OR ((new.open_for IS NOT NULL) AND ((old.due_at IS DISTINCT FROM new.due_at) OR (old.priority <> new.priority))))) EXECUTE FUNCTION public.task_open_note();

ALTER TABLE public.call_answer ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.callback ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.callback_given_up ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.dead_letter_discard ENABLE ROW LEVEL SECURITY;

CREATE POLICY engine ON public.call_answer TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.callback TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.callback_given_up TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.dead_letter_discard TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.job_signal TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.lease TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.notice TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.outbox_parked TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.pause TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.redrive_item TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.redrive_operation TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task_attempt TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task_checkpoint TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task_definition TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task_event TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.task_request TO tes_app USING (true) WITH CHECK (true);

CREATE POLICY engine ON public.worker TO tes_app USING (true) WITH CHECK (true);

ALTER TABLE public.job_signal ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.lease ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.notice ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.outbox_parked ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.pause ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.redrive_item ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.redrive_operation ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task_attempt ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task_checkpoint ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task_definition ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task_event ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.task_request ENABLE ROW LEVEL SECURITY;

CREATE POLICY tenant ON public.call_answer FOR SELECT TO tes_read USING ((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)));

CREATE POLICY tenant ON public.callback FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = callback.task_id)));

CREATE POLICY tenant ON public.callback_given_up FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = callback_given_up.task_id)));

CREATE POLICY tenant ON public.dead_letter_discard FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = dead_letter_discard.task_id)));

CREATE POLICY tenant ON public.job_signal FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = job_signal.task_id)));

CREATE POLICY tenant ON public.lease FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = lease.task_id)));

CREATE POLICY tenant ON public.notice FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = notice.task_id)));

CREATE POLICY tenant ON public.outbox_parked FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = outbox_parked.task_id)));

CREATE POLICY tenant ON public.pause FOR SELECT TO tes_read USING (((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)) OR ((tenant_id = ''::text) AND (scope <> 'task'::text) AND (current_setting('tes.tenant'::text, true) ~~ '=%'::text))));

CREATE POLICY tenant ON public.redrive_item FOR SELECT TO tes_read USING (( SELECT true
   FROM public.redrive_operation o
  WHERE (o.operation_id = redrive_item.operation_id)));

CREATE POLICY tenant ON public.redrive_operation FOR SELECT TO tes_read USING ((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)));

CREATE POLICY tenant ON public.task FOR SELECT TO tes_read USING ((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)));

CREATE POLICY tenant ON public.task_attempt FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = task_attempt.task_id)));

CREATE POLICY tenant ON public.task_checkpoint FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = task_checkpoint.task_id)));

CREATE POLICY tenant ON public.task_definition FOR SELECT TO tes_read USING (((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)) OR ((tenant_id = ''::text) AND (current_setting('tes.tenant'::text, true) ~~ '=%'::text))));

CREATE POLICY tenant ON public.task_event FOR SELECT TO tes_read USING (( SELECT true
   FROM public.task t
  WHERE (t.task_id = task_event.task_id)));

CREATE POLICY tenant ON public.task_request FOR SELECT TO tes_read USING ((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)));

CREATE POLICY tenant ON public.worker FOR SELECT TO tes_read USING ((current_setting('tes.tenant'::text, true) = ('='::text || tenant_id)));

ALTER TABLE public.worker ENABLE ROW LEVEL SECURITY;

