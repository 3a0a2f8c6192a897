-- Which process publishes the events. Programs from before this table hold an advisory
-- lock instead and do not read it; the new ones hold both.

-- +goose Up

CREATE TABLE relay_leader (
    only_one boolean NOT NULL DEFAULT true CONSTRAINT relay_leader_pkey PRIMARY KEY,
    -- Grows by one with each taking. Every write of a leader names its term.
    term bigint NOT NULL DEFAULT 0,
    -- Name of the process; empty while nobody leads.
    holder text NOT NULL DEFAULT '',
    -- The session of the leader, by which it can be ended. Null before the first.
    backend_pid integer,
    backend_start timestamptz,
    -- By the clock of the database.
    heartbeat_at timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT only_one_leader CHECK (only_one)
);
INSERT INTO relay_leader DEFAULT VALUES;

-- +goose Down

DROP TABLE relay_leader;
