-- The columns of River's tables that our queries use, declared for sqlc alone.
-- The real tables are made by River's own migrations; a test holds this file
-- against them (sql/migrations/river_test.go).

CREATE TYPE river_job_state AS ENUM (
    'available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled'
);

CREATE TABLE river_job (
    id bigint PRIMARY KEY,
    state river_job_state NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint NOT NULL,
    attempted_at timestamptz,
    created_at timestamptz NOT NULL,
    finalized_at timestamptz,
    scheduled_at timestamptz NOT NULL,
    priority smallint NOT NULL,
    args jsonb NOT NULL,
    attempted_by text[],
    errors jsonb[],
    kind text NOT NULL,
    metadata jsonb NOT NULL,
    queue text NOT NULL,
    tags varchar(255)[] NOT NULL
);

CREATE TABLE river_queue (
    name text PRIMARY KEY,
    created_at timestamptz NOT NULL,
    metadata jsonb NOT NULL,
    paused_at timestamptz,
    updated_at timestamptz NOT NULL
);

CREATE SEQUENCE river_job_id_seq;
