-- What callers that repeat a write were answered, so that they are answered the same.

-- +goose Up

-- A row is written before the call acts (status is null: it is under way), and gets its
-- answer in the transaction in which the call takes effect. turn names the call that may
-- act: an effect is written by the call that has the turn, and by no other. A call that does
-- not end gives its turn up at until.
CREATE TABLE call_answer (
    tenant_id text NOT NULL,
    caller text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    call_key text COLLATE "C" NOT NULL,
    turn bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    until timestamptz NOT NULL,
    status integer,
    body_hash bytea NOT NULL,
    headers jsonb,
    body bytea,
    PRIMARY KEY (tenant_id, caller, operation, call_key),
    CONSTRAINT answered_whole CHECK ((status IS NULL) = (body IS NULL) AND (status IS NULL) = (headers IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX call_answer_at ON call_answer (at);

CREATE POLICY tenant ON call_answer FOR SELECT TO tes_read
    USING (current_setting('tes.tenant', true) = '=' || tenant_id);
CREATE POLICY engine ON call_answer TO tes_app USING (true) WITH CHECK (true);
ALTER TABLE call_answer ENABLE ROW LEVEL SECURITY;

-- +goose Down
DROP TABLE call_answer;
