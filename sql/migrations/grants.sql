-- Run after every migration, in the migrator's name; safe to repeat.
--
--   tes_owner   owns everything, runs migrations
--   tes_app     the service: rows, not tables
--   tes_report  DBAs: the views of schema report, nothing else
--
-- Roles belong to the whole cluster, so two databases may make them at once:
-- the loser of that race goes on.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['tes_owner', 'tes_app', 'tes_report'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    IF NOT EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'tes_report' AND rolconfig @> ARRAY['statement_timeout=30s']
    ) THEN
        BEGIN
            ALTER ROLE tes_report SET statement_timeout = '30s';
            ALTER ROLE tes_report SET default_transaction_read_only = on;
        EXCEPTION WHEN internal_error THEN
            NULL; -- "tuple concurrently updated": somebody else is saying the same
        END;
    END IF;
END
$$;

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

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO tes_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tes_app;
-- What has happened stays: these are added to, and the legal moves are the migrations'.
REVOKE UPDATE, DELETE ON task_event, task_definition, maintenance_change, dead_letter_discard, task_move FROM tes_app;
REVOKE INSERT ON task_move FROM tes_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO tes_app;
GRANT USAGE ON SCHEMA report TO tes_app, tes_report;
GRANT SELECT ON ALL TABLES IN SCHEMA report TO tes_app, tes_report;
