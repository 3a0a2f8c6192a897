-- The walk over the jobs that pauses hold back: one for all processes, and its place.

-- +goose Up

CREATE TABLE pause_walk (
    only_one boolean NOT NULL DEFAULT true CONSTRAINT pause_walk_pkey PRIMARY KEY,
    -- Grows by one with each page and with each walk.
    turn bigint NOT NULL DEFAULT 0,
    -- The job behind which the walk goes on; before the first page empty and 0.
    queue text NOT NULL DEFAULT '',
    kind text NOT NULL DEFAULT '',
    priority smallint NOT NULL DEFAULT 0,
    scheduled_at timestamptz NOT NULL DEFAULT 'epoch',
    job_id bigint NOT NULL DEFAULT 0,
    -- The resumed pauses whose jobs the walk releases. Empty: the walk only looks for jobs whose
    -- pause was deleted by hand, and makes one page at a time.
    pauses bigint[] NOT NULL DEFAULT '{}',
    -- How many jobs of this walk another session had locked.
    locked bigint NOT NULL DEFAULT 0,
    moved_at timestamptz NOT NULL DEFAULT 'epoch',
    CONSTRAINT only_one_walk CHECK (only_one)
);
INSERT INTO pause_walk DEFAULT VALUES;

-- +goose Down
DROP TABLE pause_walk;
