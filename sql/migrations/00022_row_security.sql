-- Row-level security, the second line behind the WHERE of each read.
--
-- The service reads on behalf of a tenant as tes_read, in a transaction with the
-- setting tes.tenant: an equals sign and the tenant's name. The sign tells the tenant
-- '' (a caller without one) from no setting at all: a session that has had the
-- setting in an earlier transaction reads it as '' afterwards, and must see nothing.
--
-- The engine works for all tenants. Its policy is the constant true, which the planner
-- drops, so that its plans are what they were. The owner and superusers pass by all
-- policies, and with the owner the views of schema report.

-- +goose Up
CREATE FUNCTION task_open_ids(principals text[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 100 SET search_path = pg_catalog, public, pg_temp AS $$
    -- Which of the reader's tasks wait for one of these. Under a policy the index on
    -- open_for cannot be used, for && might tell of rows that are not to be seen. So
    -- this passes by the policy, as the owner, and asks the same itself.
    SELECT t.task_id
    FROM task t
    WHERE t.open_for && principals AND current_setting('tes.tenant', true) = '=' || t.tenant_id
    $$;

-- +goose StatementBegin
DO $$
DECLARE
    it text;
BEGIN
    -- Those that name their tenant.
    FOREACH it IN ARRAY ARRAY['task', 'task_request', 'redrive_operation'] LOOP
        EXECUTE format($f$
            CREATE POLICY tenant ON %I FOR SELECT TO tes_read
                USING (current_setting('tes.tenant', true) = '=' || tenant_id)$f$, it);
    END LOOP;

    -- Those that belong to a task. A scalar subquery and not EXISTS: for EXISTS the
    -- planner may read all of task, once, into a hash.
    FOREACH it IN ARRAY ARRAY[
        'task_attempt', 'task_event', 'task_checkpoint', 'lease', 'callback', 'callback_given_up', 'notice',
        'dead_letter_discard', 'outbox_parked', 'job_signal'
    ] LOOP
        EXECUTE format($f$
            CREATE POLICY tenant ON %1$I FOR SELECT TO tes_read
                USING ((SELECT true FROM task t WHERE t.task_id = %1$I.task_id))$f$, it);
    END LOOP;

    CREATE POLICY tenant ON redrive_item FOR SELECT TO tes_read
        USING ((SELECT true FROM redrive_operation o WHERE o.operation_id = redrive_item.operation_id));

    FOREACH it IN ARRAY ARRAY[
        'task', 'task_request', 'redrive_operation', 'task_attempt', 'task_event', 'task_checkpoint', 'lease', 'callback',
        'callback_given_up', 'notice', 'dead_letter_discard', 'outbox_parked', 'job_signal', 'redrive_item'
    ] LOOP
        EXECUTE format('CREATE POLICY engine ON %I TO tes_app USING (true) WITH CHECK (true)', it);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', it);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN SELECT p.tablename, p.policyname FROM pg_policies p WHERE p.schemaname = 'public' AND p.policyname IN ('tenant', 'engine') LOOP
        EXECUTE format('DROP POLICY %I ON %I', it.policyname, it.tablename);
        EXECUTE format('ALTER TABLE %I DISABLE ROW LEVEL SECURITY', it.tablename);
    END LOOP;
END
$$;
-- +goose StatementEnd
DROP FUNCTION task_open_ids(text[]);
