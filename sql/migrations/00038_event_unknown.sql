-- A database that went back in time (an asynchronous standby was promoted, a backup was
-- restored) has lost events that are on the bus. The relay writes their ids down: they are
-- never given out again with other bytes.

-- +goose Up
CREATE TABLE event_unknown (
    event_id uuid NOT NULL,
    stream_seq bigint NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz,
    CONSTRAINT event_unknown_pkey PRIMARY KEY (event_id)
);
COMMENT ON TABLE event_unknown IS 'Events that the bus has and this database does not: it went back in time.';
COMMENT ON COLUMN event_unknown.seen_at IS 'When an operator dealt with it; until then /readyz and tes check tell of it.';

-- +goose Down
DROP TABLE event_unknown;
