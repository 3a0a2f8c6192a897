-- Who may claim a manual task, as long as it waits for somebody: null before and
-- after, and for every other type. One rule for claim, claim-next and the lists.
--
-- An index may name this column and not status: for a task that code does it is
-- null from the first move to the last, so those moves stay heap-only updates.

-- +goose Up
CREATE FUNCTION task_open_for(assignee_id text, group_id text, candidates jsonb) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN cardinality(named.principals) > 0 THEN named.principals ELSE ARRAY['anyone'] END
    FROM (
        SELECT ARRAY(
            SELECT 'user:' || assignee_id WHERE assignee_id IS NOT NULL
            UNION ALL
            SELECT 'group:' || group_id WHERE group_id IS NOT NULL
            UNION ALL
            SELECT 'user:' || u FROM jsonb_array_elements_text(candidates -> 'users') u
            UNION ALL
            SELECT 'group:' || g FROM jsonb_array_elements_text(candidates -> 'groups') g
            UNION ALL
            SELECT 'role:' || r FROM jsonb_array_elements_text(candidates -> 'roles') r
        ) AS principals
    ) named
    $$;
ALTER TABLE task ADD COLUMN open_for text[] GENERATED ALWAYS AS (
    CASE WHEN status = 'ASSIGNED' THEN task_open_for(assignee_id, group_id, candidates) END
) STORED;
-- Without fastupdate: people claim seldom and look often, and a list of pending
-- entries would be read at every look.
CREATE INDEX task_open_for ON task USING gin (open_for) WITH (fastupdate = off) WHERE open_for IS NOT NULL;

-- +goose Down
DROP INDEX task_open_for;
ALTER TABLE task DROP COLUMN open_for;
DROP FUNCTION task_open_for(text, text, jsonb);
