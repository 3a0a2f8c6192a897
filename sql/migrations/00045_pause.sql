-- Pauses of queues, definitions and tasks: what holds starts back, and who paused and resumed
-- it, when and why.

-- +goose Up

-- One row for each pause: the state while it is in force (resumed_at is null), and the history
-- afterwards. A pause holds back attempts that have not begun; an attempt under way goes on.
--
-- A queue is paused by river_queue.paused_at, which claims read; its rows here are written by
-- the trigger below, whoever pauses the queue. The pause of a definition or a task is this row
-- itself: see task_pauses.
CREATE TABLE pause (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL DEFAULT '', -- whose tasks it holds back; '' with a definition: all that use the platform's
    name text COLLATE "C" NOT NULL, -- of the queue, or the id of the definition or the task
    paused_at timestamptz NOT NULL DEFAULT now(),
    paused_by text NOT NULL,
    pause_reason text NOT NULL,
    resumed_at timestamptz,
    resumed_by text,
    resume_reason text,
    -- True when no job is held back for this pause any more: every process looks for resumed
    -- pauses that are not released, so that a crash between resume and release loses nothing.
    released boolean NOT NULL DEFAULT false,
    CONSTRAINT scope_is_known CHECK (scope IN ('queue', 'definition', 'task')),
    CONSTRAINT resumed_whole CHECK (
        (resumed_at IS NULL) = (resumed_by IS NULL) AND (resumed_at IS NULL) = (resume_reason IS NULL)
    ),
    CONSTRAINT released_after_resume CHECK (resumed_at IS NOT NULL OR NOT released)
);
CREATE UNIQUE INDEX pause_in_force ON pause (scope, name, tenant_id) WHERE resumed_at IS NULL;
CREATE INDEX pause_subject ON pause (scope, name, tenant_id, id);
CREATE INDEX pause_unreleased ON pause (id) WHERE resumed_at IS NOT NULL AND NOT released;

-- A tenant reads its own pauses, and those of queues and of the platform's definitions: these
-- hold its tasks back too.
CREATE POLICY tenant ON pause FOR SELECT TO tes_read
    USING (
        current_setting('tes.tenant', true) = '=' || tenant_id
        OR tenant_id = '' AND scope <> 'task' AND current_setting('tes.tenant', true) LIKE '=%'
    );
CREATE POLICY engine ON pause TO tes_app USING (true) WITH CHECK (true);
ALTER TABLE pause ENABLE ROW LEVEL SECURITY;

-- Which pauses in force hold a task back. The planner puts the query in the function's place.
CREATE FUNCTION task_pauses(task_id uuid, tenant_id text, definition_id text, own_definition boolean) RETURNS SETOF bigint
    LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT p.id
    FROM pause p
    WHERE p.resumed_at IS NULL AND p.scope = 'definition' AND p.name = $3 AND (p.tenant_id = $2 OR (p.tenant_id = '' AND NOT $4))
    UNION ALL
    SELECT p.id
    FROM pause p
    WHERE p.resumed_at IS NULL AND p.scope = 'task' AND p.name = $1::text AND p.tenant_id = $2
    $$;

-- Whoever pauses a queue: the service, River UI, or a hand in psql. Who and why come with the
-- settings tes.pause_by and tes.pause_reason of the transaction; without them it is the role
-- that logged in, and no reason.
-- +goose StatementBegin
CREATE FUNCTION pause_note_queue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
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
-- +goose StatementEnd
CREATE TRIGGER pause_queue_insert AFTER INSERT ON river_queue FOR EACH ROW
    WHEN (NEW.paused_at IS NOT NULL)
    EXECUTE FUNCTION pause_note_queue();
CREATE TRIGGER pause_queue_update AFTER UPDATE OF paused_at ON river_queue FOR EACH ROW
    WHEN ((OLD.paused_at IS NULL) <> (NEW.paused_at IS NULL))
    EXECUTE FUNCTION pause_note_queue();
CREATE TRIGGER pause_queue_delete AFTER DELETE ON river_queue FOR EACH ROW
    WHEN (OLD.paused_at IS NOT NULL)
    EXECUTE FUNCTION pause_note_queue();

INSERT INTO pause (scope, name, paused_at, paused_by, pause_reason)
SELECT 'queue', q.name, q.paused_at, 'unknown', 'paused before pauses were recorded'
FROM river_queue q
WHERE q.paused_at IS NOT NULL;

CREATE VIEW report.pause AS
SELECT
    p.scope, p.name, p.tenant_id, p.resumed_at IS NULL AS in_force, p.paused_at, p.paused_by, p.pause_reason, p.resumed_at, p.resumed_by,
    p.resume_reason
FROM pause p;
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

-- +goose Down
DROP VIEW report.pause;
DROP TRIGGER pause_queue_delete ON river_queue;
DROP TRIGGER pause_queue_update ON river_queue;
DROP TRIGGER pause_queue_insert ON river_queue;
DROP FUNCTION pause_note_queue();
DROP FUNCTION task_pauses(uuid, text, text, boolean);
DROP TABLE pause;
-- Nobody would release the jobs that are held back.
UPDATE river_job SET state = 'available', metadata = metadata - 'paused' WHERE state = 'pending' AND kind LIKE 'task.%';
