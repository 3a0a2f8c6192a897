-- Run before the migrations, in the migrator's name; safe to repeat. Policies of
-- row-level security name roles, so these must be there first.
--
--   tes_owner   owns everything, runs migrations
--   tes_app     the service: rows, not tables
--   tes_read    what the service becomes to read on behalf of one tenant
--   tes_report  DBAs: the views of schema report, nothing else
--
-- Roles belong to the whole cluster, so two databases may make them at once:
-- the loser of that race goes on.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['tes_owner', 'tes_app', 'tes_read', 'tes_report'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    NULL;
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'the role % does not exist, and % may not create it', role, current_user
                        USING ERRCODE = 'insufficient_privilege',
                            HINT = 'Run as a superuser: CREATE ROLE ' || role || ' NOLOGIN;'
                                || CASE role WHEN 'tes_read' THEN ' GRANT tes_read TO tes_app;' ELSE '' END;
            END;
        END IF;
    END LOOP;

    -- The service must be able to become tes_read. Where the server can tell the two
    -- apart (16 and later), it does not inherit what tes_read may do.
    IF NOT pg_has_role('tes_app', 'tes_read', 'MEMBER') THEN
        BEGIN
            EXECUTE 'GRANT tes_read TO tes_app'
                || CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT FALSE, SET TRUE' ELSE '' END;
        EXCEPTION
            WHEN internal_error OR unique_violation THEN
                NULL; -- "tuple concurrently updated": somebody else is saying the same
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role tes_app is no member of tes_read, and % may not make it one', current_user
                    USING ERRCODE = 'insufficient_privilege', HINT = 'Run as a superuser: GRANT tes_read TO tes_app;';
        END;
    END IF;

    IF NOT EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'tes_report' AND rolconfig @> ARRAY['statement_timeout=30s']
    ) THEN
        BEGIN
            ALTER ROLE tes_report SET statement_timeout = '30s';
            ALTER ROLE tes_report SET default_transaction_read_only = on;
        EXCEPTION WHEN internal_error THEN
            NULL; -- the same
        END;
    END IF;
END
$$;
