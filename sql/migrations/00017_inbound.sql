-- What we are told on the bus: how often, and what of it holds until somebody says
-- otherwise (maintenance), or held for whoever was there (an order to stop).

-- +goose Up

-- One row a subject, added to with the notes in inbox.
CREATE TABLE inbound (
    subject text PRIMARY KEY,
    acted bigint NOT NULL DEFAULT 0,
    ignored bigint NOT NULL DEFAULT 0,
    repeated bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The newest word on each lane. Nothing is taken from a lane while it is in force:
-- until is null or has not come. said_at is when the bus had the word: an older one
-- that comes later changes nothing.
CREATE TABLE maintenance (
    lane task_lane PRIMARY KEY,
    since timestamptz NOT NULL,
    until timestamptz,
    reason text NOT NULL,
    actor text NOT NULL,
    said_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE maintenance_change (
    event_id text NOT NULL,
    lane task_lane NOT NULL,
    at timestamptz NOT NULL,
    enabled boolean NOT NULL,
    until timestamptz,
    reason text NOT NULL,
    actor text NOT NULL,
    PRIMARY KEY (event_id, lane)
);

-- Orders to stop. A process obeys those that were said after it had started.
CREATE TABLE shutdown_order (
    event_id text PRIMARY KEY,
    said_at timestamptz NOT NULL,
    target text NOT NULL,
    grace_seconds float8,
    reason text NOT NULL,
    actor text NOT NULL,
    CONSTRAINT grace_not_negative CHECK (grace_seconds >= 0)
);

CREATE VIEW report.maintenance AS
SELECT m.lane, m.since, m.until, m.until IS NULL OR m.until > now() AS in_force, m.reason, m.actor
FROM maintenance m;
COMMENT ON VIEW report.maintenance IS 'The newest word on the maintenance of each lane; lanes never heard of are missing.';
COMMENT ON COLUMN report.maintenance.lane IS 'the queue that gives nothing out while it is in force';
COMMENT ON COLUMN report.maintenance.since IS 'when it began';
COMMENT ON COLUMN report.maintenance.until IS 'when it ends or ended; null while nobody knows';
COMMENT ON COLUMN report.maintenance.in_force IS 'whether it holds at this moment';
COMMENT ON COLUMN report.maintenance.reason IS 'why, in the words of who asked';
COMMENT ON COLUMN report.maintenance.actor IS 'who asked last';

CREATE VIEW report.maintenance_change AS
SELECT c.at, c.lane, c.enabled, c.until, c.reason, c.actor, c.event_id
FROM maintenance_change c;
COMMENT ON VIEW report.maintenance_change IS 'Who put lanes into maintenance and took them out, and when.';
COMMENT ON COLUMN report.maintenance_change.at IS 'when the bus had the message';
COMMENT ON COLUMN report.maintenance_change.lane IS 'the queue';
COMMENT ON COLUMN report.maintenance_change.enabled IS 'true: into maintenance; false: out of it';
COMMENT ON COLUMN report.maintenance_change.until IS 'when it was to end by itself; null for never';
COMMENT ON COLUMN report.maintenance_change.reason IS 'why, in the words of who asked';
COMMENT ON COLUMN report.maintenance_change.actor IS 'who asked';
COMMENT ON COLUMN report.maintenance_change.event_id IS 'the id of the message';

-- +goose Down
DROP VIEW report.maintenance_change;
DROP VIEW report.maintenance;
DROP TABLE shutdown_order;
DROP TABLE maintenance_change;
DROP TABLE maintenance;
DROP TABLE inbound;
