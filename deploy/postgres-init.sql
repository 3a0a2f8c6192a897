-- The roles of tes, for an empty server. The postgres image runs this once, as the
-- superuser and in the database tes, when it makes its data directory; on a server
-- of your own run it with psql in the same way. The passwords come from the
-- environment of psql, so that none stands in a file.
--
--   tes_migrate  logs in to run "tes migrate up"; member of tes_owner
--   tes_service  logs in to run "tes serve"; member of tes_app: rows, not tables
--   tes_reader   logs in to read reports; member of tes_report: views, nothing else
--
-- "tes migrate up" makes the four group roles itself if it may. Made here, the
-- migrations need no superuser. The fourth, tes_read, is what "tes serve" becomes to
-- read on behalf of one tenant: row-level security shows it no other's rows.

\set ON_ERROR_STOP on
\getenv migrate_password TES_MIGRATE_PASSWORD
\getenv service_password TES_SERVICE_PASSWORD
\getenv reader_password TES_READER_PASSWORD

CREATE ROLE tes_owner NOLOGIN;
CREATE ROLE tes_app NOLOGIN;
CREATE ROLE tes_read NOLOGIN;
CREATE ROLE tes_report NOLOGIN;

-- From PostgreSQL 16 on, the service does not inherit what tes_read may do.
SELECT current_setting('server_version_num')::int >= 160000 AS tells \gset
\if :tells
GRANT tes_read TO tes_app WITH INHERIT FALSE, SET TRUE;
\else
GRANT tes_read TO tes_app;
\endif

CREATE ROLE tes_migrate LOGIN PASSWORD :'migrate_password' IN ROLE tes_owner;
CREATE ROLE tes_service LOGIN PASSWORD :'service_password' IN ROLE tes_app;
CREATE ROLE tes_reader LOGIN PASSWORD :'reader_password' IN ROLE tes_report;

-- Each of its sessions begins as tes_owner, so that whatever a migration makes
-- belongs to tes_owner from the first moment.
ALTER ROLE tes_migrate SET role = 'tes_owner';

-- Settings belong to the role that logs in; a member does not inherit them.
ALTER ROLE tes_report SET statement_timeout = '30s';
ALTER ROLE tes_report SET default_transaction_read_only = on;
ALTER ROLE tes_reader SET statement_timeout = '30s';
ALTER ROLE tes_reader SET default_transaction_read_only = on;

-- What fills the disk of everybody. "tes migrate up" revokes CONNECT and TEMPORARY from
-- PUBLIC; these need a superuser: large objects, and the files of a sort.
REVOKE EXECUTE ON FUNCTION
    lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea), lo_put(oid, bigint, bytea), lowrite(integer, bytea), lo_open(oid, integer)
    FROM PUBLIC;
ALTER ROLE tes_reader SET temp_file_limit = '4GB';

-- Whoever owns the database may make schemas in it and grant rights on public.
ALTER DATABASE tes OWNER TO tes_owner;
