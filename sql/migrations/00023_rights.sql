-- What the database refuses to whoever writes to it, also as the engine. tes.actor can
-- be set by anybody: it keeps a hand in psql from accidents. What a role may write is
-- said by grants.sql, column by column; what nobody may, by the triggers here.

-- +goose Up
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION task_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE FUNCTION task_guard_fixed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'task %: what it was created with does not change', OLD.task_id
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE FUNCTION task_attempt_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'attempt % of task % is not deleted: an attempt that has ended is kept', OLD.attempt, OLD.task_id
        USING ERRCODE = 'restrict_violation';
END
$$;

-- Looks at up to 16 events of a statement: at all of a statement that somebody would
-- write by hand, and of a batch of the engine's at some in a row, from a random one on.
-- To look at all of a batch costs too much: docs/decisions/0019-forged-events.md.
CREATE FUNCTION task_event_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
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
-- +goose StatementEnd

-- A row that ended keeps its end for as long as its version: of it the engine changes
-- the job alone. The first comparisons decide for a task that runs.
DROP TRIGGER task_guard_update ON task;
CREATE TRIGGER task_guard_update BEFORE UPDATE ON task FOR EACH ROW
    WHEN (
        current_setting('tes.actor', true) IS DISTINCT FROM 'engine'
        OR NOT task_move_legal(OLD.status, NEW.status, NEW.version - OLD.version)
        OR (
            OLD.ended_at IS NOT NULL AND OLD.version = NEW.version AND (
                OLD.ended_at, OLD.started_at, OLD.next_retry_at, OLD.assigned_at, OLD.due_at, OLD.attempt, OLD.failures, OLD.crashes,
                OLD.lane, OLD.assignee_id, OLD.assignee_name, OLD.group_id, OLD.candidates, OLD.input, OLD.output, OLD.error
            ) IS DISTINCT FROM (
                NEW.ended_at, NEW.started_at, NEW.next_retry_at, NEW.assigned_at, NEW.due_at, NEW.attempt, NEW.failures, NEW.crashes,
                NEW.lane, NEW.assignee_id, NEW.assignee_name, NEW.group_id, NEW.candidates, NEW.input, NEW.output, NEW.error
            )
        )
    )
    EXECUTE FUNCTION task_guard();

-- What a task was created with: every column but those that a move changes. Looked at
-- only where a statement names one of them, which none of the engine's does.
-- +goose StatementBegin
DO $$
DECLARE
    fixed text[];
BEGIN
    SELECT array_agg(quote_ident(a.attname) ORDER BY a.attnum)
    INTO fixed
    FROM pg_attribute a
    WHERE a.attrelid = 'task'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        AND a.attname <> ALL (ARRAY[
            'job_id', 'started_at', 'ended_at', 'next_retry_at', 'assigned_at', 'due_at', 'version', 'attempt', 'failures', 'crashes',
            'status', 'lane', 'assignee_id', 'assignee_name', 'group_id', 'candidates', 'input', 'output', 'error', 'deadline_id'
        ]);
    EXECUTE format(
        'CREATE TRIGGER task_guard_update_fixed BEFORE UPDATE OF %s ON task FOR EACH ROW
            WHEN ((OLD.%s) IS DISTINCT FROM (NEW.%s)) EXECUTE FUNCTION task_guard_fixed()',
        array_to_string(fixed, ', '), array_to_string(fixed, ', OLD.'), array_to_string(fixed, ', NEW.'));
END
$$;
-- +goose StatementEnd

-- A tenant reads its own definitions and the platform's, as it uses them.
CREATE POLICY engine ON task_definition TO tes_app USING (true) WITH CHECK (true);
CREATE POLICY tenant ON task_definition FOR SELECT TO tes_read
    USING (current_setting('tes.tenant', true) = '=' || tenant_id OR tenant_id = '' AND current_setting('tes.tenant', true) LIKE '=%');
ALTER TABLE task_definition ENABLE ROW LEVEL SECURITY;

-- A release takes back an attempt that was begun; one that ended stays.
CREATE TRIGGER task_attempt_guard BEFORE DELETE ON task_attempt FOR EACH ROW
    WHEN (OLD.outcome IS NOT NULL OR current_setting('tes.actor', true) IS DISTINCT FROM 'engine')
    EXECUTE FUNCTION task_attempt_guard();

-- An event belongs to the move that its task's row has made in the same statement.
-- Superusers could switch this off, and are not asked: what they do by hand is
-- checked by "tes check".
CREATE TRIGGER task_event_guard AFTER INSERT ON task_event
    REFERENCING NEW TABLE AS new_event FOR EACH STATEMENT
    WHEN (current_setting('is_superuser') = 'off')
    EXECUTE FUNCTION task_event_guard();

-- +goose Down
DROP POLICY engine ON task_definition;
DROP POLICY tenant ON task_definition;
ALTER TABLE task_definition DISABLE ROW LEVEL SECURITY;
DROP TRIGGER task_event_guard ON task_event;
DROP TRIGGER task_attempt_guard ON task_attempt;
DROP TRIGGER task_guard_update_fixed ON task;
DROP TRIGGER task_guard_update ON task;
DROP FUNCTION task_event_guard();
DROP FUNCTION task_attempt_guard();
DROP FUNCTION task_guard_fixed();
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION task_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('tes.actor', true) IS DISTINCT FROM 'engine' THEN
        RAISE EXCEPTION 'task % is not changed by hand: its row, its job and its event belong to one move', OLD.task_id
            USING ERRCODE = 'restrict_violation',
                HINT = 'Use POST /api/internal/tasks/{taskId}/cancel, PUT /api/internal/tasks/{taskId}/status or POST /api/internal/tasks/{taskId}/reassign.';
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
-- +goose StatementEnd
CREATE TRIGGER task_guard_update BEFORE UPDATE ON task FOR EACH ROW
    WHEN (
        current_setting('tes.actor', true) IS DISTINCT FROM 'engine'
        OR NOT task_move_legal(OLD.status, NEW.status, NEW.version - OLD.version)
    )
    EXECUTE FUNCTION task_guard();
