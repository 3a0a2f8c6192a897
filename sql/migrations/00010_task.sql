-- +goose Up

CREATE TYPE task_status AS ENUM (
    'PENDING', 'ASSIGNED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT'
);
CREATE TYPE task_type AS ENUM ('AUTOMATED', 'INTEGRATION', 'MANUAL');
CREATE TYPE task_lane AS ENUM (
    'task-execution-automated',
    'task-execution-integration',
    'task-execution-manual',
    'task-execution-retry',
    'task-execution-deadletter'
);
CREATE TYPE task_event_type AS ENUM (
    'created', 'started', 'completed', 'failed', 'canceled', 'retry', 'assigned',
    'released', 'redriven'
);
CREATE TYPE attempt_outcome AS ENUM (
    'COMPLETED', 'FAILED', 'TIMED_OUT', 'LEASE_EXPIRED', 'CANCELLED', 'RELEASED'
);

-- What a task is made of beside its own request. A revision never changes, so
-- that a task always means the definition it was created under.
CREATE TABLE task_definition (
    definition_id text COLLATE "C" NOT NULL,
    revision integer NOT NULL,
    type task_type NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    timeout_ms bigint NOT NULL,
    version text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    created_by text NOT NULL,
    input_schema jsonb,
    output_schema jsonb,
    retry_policy jsonb,
    execution_config jsonb NOT NULL,
    PRIMARY KEY (definition_id, revision),
    CONSTRAINT revision_positive CHECK (revision > 0),
    CONSTRAINT timeout_positive CHECK (timeout_ms > 0)
);

-- The truth. job_id is the delivery token in river_job and, with attempt, the
-- fence of every write. No foreign key: River deletes jobs when it pleases.
--
-- Nothing that changes while a task runs is named by an index or an index
-- predicate, so every move is a heap-only update; fillfactor leaves the room.
-- assignee_id and group_id change for manual tasks only.
CREATE TABLE task (
    task_id uuid PRIMARY KEY,
    job_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    next_retry_at timestamptz,
    assigned_at timestamptz,
    due_at timestamptz,
    version integer NOT NULL DEFAULT 1,
    attempt integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    status task_status NOT NULL DEFAULT 'PENDING',
    type task_type NOT NULL,
    lane task_lane NOT NULL,
    revision integer NOT NULL,
    priority smallint NOT NULL,
    tenant_id text NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    definition_id text NOT NULL,
    executor text NOT NULL,
    correlation_id text NOT NULL,
    step_id text,
    assignee_id text COLLATE "C",
    assignee_name text,
    group_id text COLLATE "C",
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
    CONSTRAINT priority_in_range CHECK (priority BETWEEN 1 AND 4),
    CONSTRAINT attempt_not_negative CHECK (attempt >= 0 AND failures >= 0 AND crashes >= 0),
    CONSTRAINT ended_when_terminal CHECK (
        (ended_at IS NOT NULL) = (status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT'))
    ),
    CONSTRAINT assigned_to_somebody CHECK (
        status <> 'ASSIGNED' OR assignee_id IS NOT NULL OR group_id IS NOT NULL OR candidates IS NOT NULL
    )
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX task_workflow ON task (workflow_id, task_id);
CREATE INDEX task_assignee ON task (assignee_id, task_id) WHERE assignee_id IS NOT NULL;

-- One row an attempt; written when the attempt starts, closed when it ends.
CREATE TABLE task_attempt (
    task_id uuid NOT NULL,
    attempt integer NOT NULL,
    outcome attempt_outcome,
    job_id bigint NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    executor_id text NOT NULL,
    error jsonb,
    PRIMARY KEY (task_id, attempt),
    CONSTRAINT ended_with_outcome CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- The audit trail and the outbox's payload in one. seq is the task's version
-- after the move. payload holds only what the columns of task and task_attempt
-- do not say; outbox.Envelope and report.event put the whole together. Text, not
-- jsonb: it is written at every move and parsed only when it is told.
CREATE TABLE task_event (
    id bigint PRIMARY KEY,
    task_id uuid NOT NULL,
    at timestamptz NOT NULL,
    seq integer NOT NULL,
    attempt integer NOT NULL,
    type task_event_type NOT NULL,
    was task_status,
    now task_status NOT NULL,
    actor text NOT NULL,
    payload text,
    CONSTRAINT one_event_a_move UNIQUE (task_id, seq)
);

-- Handed out a block at a time: every flush writes one contiguous range.
CREATE SEQUENCE task_event_id_seq AS bigint INCREMENT BY 20000 START WITH 20000;

-- One row a flush says "events lo to hi-1 are not published yet". id is drawn
-- after the flush has locked its tasks, so it orders the events of one task; lo
-- does not, for two processes draw their ranges ahead of time.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lo bigint NOT NULL,
    hi bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT range_not_empty CHECK (lo < hi)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- What was told, and where the stream keeps it: when a stream turns out to have
-- lost its tail, these ranges go back into the outbox. One that had nothing to tell
-- stands at 0, or it would speak for what stands there. Kept for a day.
CREATE TABLE outbox_published (
    id bigint PRIMARY KEY,
    lo bigint NOT NULL,
    hi bigint NOT NULL,
    last_seq bigint NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_published_last_seq ON outbox_published (last_seq);

-- An event that can never be told (larger than the bus's limit). Parked here, counted,
-- never dropped: the outbox goes on behind it.
CREATE TABLE outbox_parked (
    event_id bigint PRIMARY KEY,
    task_id uuid NOT NULL,
    reason text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now()
);

-- Which stream the published ranges are in. One row.
CREATE TABLE outbox_stream (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    stream_created_at timestamptz NOT NULL
);

-- Idempotency keys: the first request with a key makes the task, the others get it.
CREATE TABLE task_request (
    tenant_id text NOT NULL,
    request_key text COLLATE "C" NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    body_hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, request_key)
);

-- Who runs what, for as long as it runs: one row for a RUNNING task whose start
-- was told apart from its end. An attempt that starts and ends in one flush
-- never has one. A dead letter has one (letter) while somebody looks at it.
CREATE TYPE lease_kind AS ENUM ('process', 'worker', 'response', 'person', 'letter');
CREATE TABLE lease (
    task_id uuid PRIMARY KEY,
    job_id bigint NOT NULL,
    attempt integer NOT NULL,
    kind lease_kind NOT NULL,
    visibility_ms bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    deadline_at timestamptz,
    owner text NOT NULL,
    invocation_id text
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX lease_expires_at ON lease (expires_at);

-- Live processes. A job claimed by a process that is not seen any more, and not
-- yet started, goes back to its lane.
CREATE TABLE executor (
    executor_id text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Bus messages acted upon, by their event id.
CREATE TABLE inbox (
    event_id text PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now(),
    subject text NOT NULL,
    outcome text NOT NULL,
    detail text
);

-- What happened how often: one thin row a flush, folded into tally_hour every
-- second. The metrics endpoint sums the two, which costs the same at ten tasks
-- and at ten million.
CREATE TABLE tally_delta (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    type task_type NOT NULL,
    lane task_lane NOT NULL,
    event task_event_type NOT NULL,
    was task_status,
    now task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE tally_hour (
    hour timestamptz NOT NULL,
    type task_type NOT NULL,
    lane task_lane NOT NULL,
    event task_event_type NOT NULL,
    was task_status,
    now task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL,
    CONSTRAINT tally_hour_key UNIQUE NULLS NOT DISTINCT (hour, type, lane, event, was, now)
);
-- The same without the hour, so that "how many are RUNNING" never sums years.
CREATE TABLE tally (
    type task_type NOT NULL,
    lane task_lane NOT NULL,
    event task_event_type NOT NULL,
    was task_status,
    now task_status NOT NULL,
    n bigint NOT NULL,
    run_ms bigint NOT NULL,
    CONSTRAINT tally_key UNIQUE NULLS NOT DISTINCT (type, lane, event, was, now)
);

-- +goose Down
DROP TABLE tally, tally_hour, tally_delta, inbox, executor, lease, task_request, outbox_stream, outbox_parked,
    outbox_published, outbox, task_event, task_attempt, task, task_definition;
DROP SEQUENCE task_event_id_seq;
DROP TYPE lease_kind, attempt_outcome, task_event_type, task_lane, task_type, task_status;
