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

-- Nobody has anything because they may connect. A database that is not the migrator's
-- keeps what PUBLIC may: then its owner runs these lines.
REVOKE ALL ON SCHEMA public, report FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public, report FROM PUBLIC;
DO $$
BEGIN
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tes_owner, tes_app, tes_report', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'the database is not the migrator''s: PUBLIC keeps CONNECT and TEMPORARY on it';
END
$$;
-- Large objects are rows that whoever may connect can write, without end.
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT p.oid::regprocedure AS signature
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_open')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', it.signature);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    NULL; -- a superuser's: deploy/postgres-init.sql does so
END
$$;

-- The service writes what the engine's statements write, and no column beside. A new
-- statement wants its columns here; TestServiceMayWriteWhatTheListSays has the list.
REVOKE ALL ON ALL TABLES IN SCHEMA public, report FROM tes_app;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM tes_app;
GRANT USAGE ON SCHEMA public, report TO tes_app;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tes_app;
GRANT USAGE ON SEQUENCE task_event_id_seq, river_job_id_seq TO tes_app;

-- A task begins as its request made it, and changes by moves. None is deleted.
DO $$
BEGIN
    EXECUTE format('GRANT INSERT (%s) ON task TO tes_app', (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = 'task'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
            AND a.attname <> ALL (ARRAY[
                'started_at', 'ended_at', 'next_retry_at', 'assigned_at', 'version', 'attempt', 'failures', 'crashes', 'status',
                'assignee_id', 'assignee_name', 'group_id', 'candidates', 'output', 'error', 'deadline_id'
            ])
    ));
END
$$;
GRANT UPDATE (
    job_id, started_at, ended_at, next_retry_at, assigned_at, due_at, version, attempt, failures, crashes, status, lane,
    assignee_id, assignee_name, group_id, candidates, input, output, error, deadline_id
) ON task TO tes_app;
GRANT INSERT, UPDATE (outcome, ended_at, error), DELETE ON task_attempt TO tes_app;
GRANT INSERT, UPDATE (attempt, at, progress, checkpoint) ON task_checkpoint TO tes_app;
GRANT INSERT, UPDATE (job_id, attempt, kind, visibility_ms, expires_at, deadline_at, owner, invocation_id, request_id), DELETE ON lease TO tes_app;

-- What has happened stays: these are added to.
GRANT INSERT ON task_event, task_request, task_definition, dead_letter_discard, maintenance_change, shutdown_order, callback_given_up, outbox_parked TO tes_app;

GRANT INSERT, UPDATE (claim, due_at, tries, problem, since, told, upto), DELETE ON callback TO tes_app;
GRANT INSERT, UPDATE (outcome, channel, detail, tries, settled_at), DELETE ON notice TO tes_app;
GRANT INSERT, UPDATE (state, seq, code) ON redrive_item TO tes_app;
GRANT INSERT, UPDATE (state, paced_at, ended_at, stopped_at, stopped_by, stop_reason, undone_at, undone_by, undo_reason) ON redrive_operation TO tes_app;
GRANT INSERT (job_id, task_id, what), DELETE ON job_signal TO tes_app;
GRANT INSERT, UPDATE (turn, at), DELETE ON dequeue_turn TO tes_app;
GRANT INSERT, UPDATE (turn, until, status, headers, body, at), DELETE ON call_answer TO tes_app;
-- A queue's rows are written by the trigger of river_queue, in the owner's name. The UPDATE of
-- released is also for ON CONFLICT.
GRANT INSERT (scope, tenant_id, name, paused_by, pause_reason), UPDATE (resumed_at, resumed_by, resume_reason, released) ON pause TO tes_app;
GRANT UPDATE ON pause_lock TO tes_app; -- for LOCK TABLE, which looks at no column; the table is empty
GRANT UPDATE (turn, queue, kind, priority, scheduled_at, job_id, pauses, locked, moved_at) ON pause_walk TO tes_app;
-- task_open is written by the triggers of task, in the owner's name, and by nobody else.

-- ready is written by the triggers of river_job, in the owner's name; the INSERT is the
-- reconciliation's, and the UPDATE is for FOR UPDATE.
GRANT INSERT, UPDATE (due_at), DELETE ON ready TO tes_app;

GRANT INSERT, DELETE ON outbox TO tes_app;
GRANT INSERT, UPDATE (last_seq, published_at), DELETE ON outbox_published TO tes_app;
GRANT INSERT, UPDATE (stream_created_at) ON outbox_stream TO tes_app;
GRANT INSERT ON event_unknown TO tes_app;
GRANT UPDATE (term, holder, backend_pid, backend_start, heartbeat_at) ON relay_leader TO tes_app;
GRANT INSERT, UPDATE (outcome, detail) ON inbox TO tes_app;
GRANT INSERT, UPDATE (acted, ignored, repeated, dead) ON inbound TO tes_app;

GRANT INSERT, UPDATE (seen_at, worker_at, kinds), DELETE ON executor TO tes_app; -- worker_at: by the program of the version before
GRANT INSERT, UPDATE (definition_ids, seen_at), DELETE ON worker TO tes_app;
GRANT INSERT, UPDATE (since, until, reason, actor, said_at) ON maintenance TO tes_app;
GRANT INSERT, UPDATE (name) ON secret TO tes_app; -- a key is made once; the UPDATE is how it is read back
GRANT INSERT, UPDATE (n, run_ms) ON tally, tally_hour TO tes_app;
GRANT INSERT, UPDATE (id), DELETE ON tally_delta TO tes_app; -- the UPDATE is for FOR UPDATE: an identity takes none

-- River's client and its leader.
GRANT INSERT, UPDATE, DELETE ON river_job, river_leader, river_queue TO tes_app;

GRANT EXECUTE ON FUNCTION
    callback_host(text), callback_tells(task_event_type), task_move_legal(task_status, task_status, integer),
    task_open_for(text, text, jsonb), river_job_state_in_bitmask(bit, river_job_state), payload_weight(jsonb)
    TO tes_app;
GRANT EXECUTE ON FUNCTION ready_place(text, task_type), ready_rank(timestamptz, smallint) TO tes_app;
GRANT EXECUTE ON FUNCTION job_task(jsonb) TO tes_app, tes_read, tes_report;
GRANT EXECUTE ON FUNCTION task_pauses(uuid, text, text, boolean) TO tes_app, tes_read;
GRANT EXECUTE ON FUNCTION pause_lock_exclusive() TO tes_app;

-- Reports. The views pass by the policies with their owner: reporters see all tenants.
GRANT USAGE ON SCHEMA report TO tes_report;
GRANT SELECT ON ALL TABLES IN SCHEMA report TO tes_report;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA report TO tes_app, tes_read, tes_report;

-- What is read on behalf of one tenant: rows of that tenant, by the policies. Of the
-- jobs, which are all tenants', it is how they stand and whose ids they carry, and
-- never what goes along with them (metadata, tags, errors).
GRANT USAGE ON SCHEMA public, report TO tes_read;
GRANT SELECT ON
    task, task_request, task_attempt, task_event, task_checkpoint, lease, callback, callback_given_up, notice,
    dead_letter_discard, outbox_parked, job_signal, redrive_operation, redrive_item, task_definition, worker, call_answer, pause
    TO tes_read;
GRANT SELECT (id, state, queue, kind, priority, created_at, scheduled_at, attempted_at, attempted_by, args) ON river_job TO tes_read;
GRANT SELECT (name, paused_at) ON river_queue TO tes_read;
GRANT SELECT (lane, since, until, reason) ON maintenance TO tes_read;
GRANT SELECT (executor_id, seen_at, worker_at, kinds) ON executor TO tes_read;
GRANT EXECUTE ON FUNCTION task_open_ids(text[]) TO tes_read;
