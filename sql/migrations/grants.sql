-- Run after every migration, in the migrator's name; safe to repeat. The roles are
-- those of roles.sql.

-- An owner must be allowed to make things where his things are.
GRANT USAGE, CREATE ON SCHEMA public, report TO tes_owner;

DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT
            n.nspname, c.relname, c.relkind,
            CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS word
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('public', 'report')
            AND c.relkind IN ('r', 'p', 'v', 'S')
            AND c.relowner <> (SELECT oid FROM pg_roles WHERE rolname = 'tes_owner')
            -- A sequence that belongs to a column goes with its table.
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER %s %I.%I OWNER TO tes_owner', it.word, it.nspname, it.relname);
    END LOOP;
END
$$;

DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT p.oid::regprocedure AS signature
        FROM pg_proc p
        JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('public', 'report')
            AND p.proowner <> (SELECT oid FROM pg_roles WHERE rolname = 'tes_owner')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO tes_owner', it.signature);
    END LOOP;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO tes_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tes_app;
-- What has happened stays: these are added to, and the legal moves are the migrations'.
REVOKE UPDATE, DELETE ON task_event, task_definition, maintenance_change, dead_letter_discard, task_move FROM tes_app;
REVOKE INSERT ON task_move FROM tes_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO tes_app;
GRANT USAGE ON SCHEMA report TO tes_app, tes_report;
GRANT SELECT ON ALL TABLES IN SCHEMA report TO tes_app, tes_report;

-- What is read on behalf of one tenant: rows of that tenant, by the policies. Of the
-- jobs, which are all tenants', it is how they stand and whose ids they carry, and
-- never what goes along with them (metadata, tags, errors).
GRANT USAGE ON SCHEMA public, report TO tes_read;
GRANT SELECT ON
    task, task_request, task_attempt, task_event, task_checkpoint, lease, callback, callback_given_up, notice,
    dead_letter_discard, outbox_parked, job_signal, redrive_operation, redrive_item
    TO tes_read;
GRANT SELECT (id, state, queue, kind, priority, created_at, scheduled_at, attempted_at, attempted_by, args) ON river_job TO tes_read;
GRANT SELECT (name, paused_at) ON river_queue TO tes_read;
GRANT SELECT (lane, since, until, reason) ON maintenance TO tes_read;
GRANT SELECT (executor_id, seen_at, worker_at) ON executor TO tes_read;
