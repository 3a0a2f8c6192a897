-- The state machine, as rows. jobs.Legal says the same in Go; a test proves the
-- two equal.

-- +goose Up
CREATE TABLE task_move (
    was task_status NOT NULL,
    now task_status NOT NULL,
    told_by text NOT NULL,
    PRIMARY KEY (was, now)
);
INSERT INTO task_move (was, now, told_by) VALUES
    ('PENDING', 'RUNNING', 'an executor''s claim'),
    ('PENDING', 'ASSIGNED', 'the manual handler'),
    ('PENDING', 'CANCELLED', 'POST /api/internal/tasks/{taskId}/cancel'),
    ('PENDING', 'TIMED_OUT', 'the engine, at the deadline'),
    ('PENDING', 'FAILED', 'PUT /api/internal/tasks/{taskId}/status'),
    ('ASSIGNED', 'ASSIGNED', 'POST /api/internal/tasks/{taskId}/reassign'),
    ('ASSIGNED', 'RUNNING', 'PUT /api/internal/tasks/{taskId}/status'),
    ('ASSIGNED', 'COMPLETED', 'PUT /api/internal/tasks/{taskId}/status'),
    ('ASSIGNED', 'FAILED', 'PUT /api/internal/tasks/{taskId}/status'),
    ('ASSIGNED', 'CANCELLED', 'POST /api/internal/tasks/{taskId}/cancel'),
    ('ASSIGNED', 'TIMED_OUT', 'the engine, at the deadline'),
    ('RUNNING', 'COMPLETED', 'an executor''s result'),
    ('RUNNING', 'FAILED', 'an executor''s result'),
    ('RUNNING', 'TIMED_OUT', 'the engine, at the deadline'),
    ('RUNNING', 'CANCELLED', 'POST /api/internal/tasks/{taskId}/cancel'),
    ('RUNNING', 'PENDING', 'a retry or a release'),
    ('RUNNING', 'ASSIGNED', 'an unclaim'),
    ('FAILED', 'PENDING', 'a redrive'),
    ('TIMED_OUT', 'PENDING', 'a redrive');

-- A start and a finish may share one commit: then the row takes two steps at
-- once, and both events are written. Made from the table, so that the two cannot
-- disagree; inlined by the planner, so that it costs a comparison.
-- +goose StatementBegin
DO $$
DECLARE
    one text;
    two text;
BEGIN
    SELECT string_agg(format('(%L, %L)', m.was, m.now), ', ' ORDER BY m.was, m.now)
    INTO one
    FROM task_move m;
    SELECT string_agg(DISTINCT format('(%L, %L)', a.was, b.now), ', ')
    INTO two
    FROM task_move a
    JOIN task_move b ON b.was = a.now
    WHERE a.was = 'PENDING' AND a.now = 'RUNNING' AND b.now = 'COMPLETED';
    EXECUTE format(
        'CREATE FUNCTION task_move_legal(was task_status, now task_status, steps integer) RETURNS boolean
            LANGUAGE sql IMMUTABLE AS $f$
            SELECT CASE steps WHEN 0 THEN was = now WHEN 1 THEN (was, now) IN (%s) WHEN 2 THEN (was, now) IN (%s) ELSE false END
            $f$', one, two);
END
$$;

CREATE FUNCTION task_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER task_guard_delete BEFORE DELETE ON task FOR EACH ROW
    WHEN (current_setting('tes.actor', true) IS DISTINCT FROM 'engine')
    EXECUTE FUNCTION task_guard();

-- +goose Down
DROP TRIGGER task_guard_delete ON task;
DROP TRIGGER task_guard_update ON task;
DROP FUNCTION task_guard();
DROP FUNCTION task_move_legal(task_status, task_status, integer);
DROP TABLE task_move;
