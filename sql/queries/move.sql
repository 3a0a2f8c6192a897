-- name: TaskComplete :many
-- A batch of successful attempts: the hot path. A combined attempt starts and ends in this
-- statement: its task is still PENDING, the attempt never had a lease, and two events are
-- written (event_id and event_id + 1; other attempts write only event_id + 1). An attempt
-- that is not returned has lost its lease. The time since the end and the duration are given
-- in microseconds; the database's clock converts them into times.
--
-- (state = 'running') IS TRUE: an index on state could serve the plain condition, and a
-- planner with statistics from an idle moment would walk that index for every id.
WITH result AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@job_ids::bigint[]) AS job_id,
        unnest(@attempts::integer[]) AS attempt,
        unnest(@event_ids::bigint[]) AS event_id,
        unnest(@combined::boolean[]) AS combined,
        unnest(@ended_agos::bigint[]) * interval '1 microsecond' AS ended_ago,
        unnest(@rans::bigint[]) * interval '1 microsecond' AS ran,
        unnest(@outputs::text[]) AS output,
        unnest(@payloads::text[]) AS payload
),
done AS (
    UPDATE task t
    SET
        status = 'COMPLETED',
        attempt = result.attempt,
        started_at = CASE WHEN result.combined THEN greatest(now() - result.ended_ago - result.ran, t.created_at) ELSE t.started_at END,
        ended_at = greatest(now() - result.ended_ago, CASE WHEN NOT result.combined THEN t.started_at END, t.created_at),
        next_retry_at = NULL,
        output = nullif(result.output, '')::jsonb,
        error = NULL,
        version = t.version + CASE WHEN result.combined THEN 2 ELSE 1 END
    FROM result
    WHERE t.task_id = result.task_id
        AND t.job_id = result.job_id
        AND CASE
            WHEN result.combined THEN t.status = 'PENDING' AND t.attempt = result.attempt - 1
            ELSE t.status = 'RUNNING' AND t.attempt = result.attempt
        END
    RETURNING
        t.task_id, t.job_id, t.attempt, t.version, t.type, t.lane, t.started_at, t.ended_at, t.callback_url,
        result.combined, result.event_id, result.payload
),
ended_job AS (
    UPDATE river_job j
    SET state = 'completed', finalized_at = done.ended_at
    FROM done
    WHERE j.id = done.job_id AND (j.state = 'running') IS TRUE
),
ended_lease AS (
    DELETE FROM lease l
    USING done
    WHERE l.task_id = done.task_id AND NOT done.combined
),
-- These rows are known to be new: a speculative insert (ON CONFLICT) would cost half as much again.
new_attempt AS (
    INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id)
    SELECT done.task_id, done.attempt, 'COMPLETED', done.job_id, done.started_at, done.ended_at, @executor_id::text
    FROM done
    WHERE done.combined
),
ended_attempt AS (
    INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id)
    SELECT done.task_id, done.attempt, 'COMPLETED', done.job_id, done.started_at, done.ended_at, @executor_id::text
    FROM done
    WHERE NOT done.combined
    ON CONFLICT (task_id, attempt) DO UPDATE SET outcome = excluded.outcome, ended_at = excluded.ended_at
),
new_event AS (
    INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor, payload)
    SELECT
        done.event_id + step.k, done.task_id,
        CASE WHEN step.started THEN done.started_at ELSE done.ended_at END,
        CASE WHEN step.started THEN done.version - 1 ELSE done.version END,
        done.attempt, step.type, step.was, step.now, @executor_id::text,
        CASE WHEN step.started THEN NULL ELSE nullif(done.payload, '') END
    FROM done
    JOIN (
        VALUES
            (0, true, 'started'::task_event_type, 'PENDING'::task_status, 'RUNNING'::task_status),
            (1, false, 'completed', 'RUNNING', 'COMPLETED')
    ) AS step (k, started, type, was, now) ON done.combined OR NOT step.started
    RETURNING id
),
new_outbox AS (
    INSERT INTO outbox (lo, hi)
    SELECT min(new_event.id), max(new_event.id) + 1
    FROM new_event
    HAVING count(*) > 0
),
-- Most tasks have no callback address, and add no row. In the order in which CallbackSettle
-- locks the same rows.
new_callback AS (
    INSERT INTO callback (task_id, told, upto, since, host)
    SELECT
        done.task_id, done.version - CASE WHEN done.combined THEN 2 ELSE 1 END, done.version,
        CASE WHEN done.combined THEN done.started_at ELSE done.ended_at END, callback_host(done.callback_url)
    FROM done
    WHERE done.callback_url IS NOT NULL
    ORDER BY done.task_id
    ON CONFLICT (task_id) DO UPDATE SET upto = excluded.upto
),
new_tally AS (
    INSERT INTO tally_delta (at, type, lane, event, was, now, n, run_ms)
    SELECT
        max(done.ended_at), done.type, done.lane, 'completed',
        CASE WHEN done.combined THEN 'PENDING'::task_status ELSE 'RUNNING' END, 'COMPLETED',
        count(*), coalesce(sum(extract(epoch FROM done.ended_at - done.started_at) * 1000), 0)::bigint
    FROM done
    GROUP BY done.type, done.lane, done.combined
)
SELECT done.job_id, (done.callback_url IS NOT NULL)::boolean AS calls_back
FROM done;

-- name: LockBriefly :exec
-- For the rest of the transaction: a statement that is one of many tries waits for locks only
-- as long as the engine's own transactions usually hold them.
SELECT set_config('lock_timeout', '100ms', true);

-- name: TaskLock :exec
-- In the order in which TaskMove and TaskComplete lock.
SELECT FROM task t WHERE t.task_id = ANY(@task_ids::uuid[]) ORDER BY t.task_id FOR UPDATE;

-- name: TaskMove :many
-- A batch of transitions of all other kinds, at most one for each task. A transition has
-- expectations (want_…, where -1 is "any" and statuses are separated by commas) and changes,
-- where an empty text or a zero leaves the column unchanged. Every existing task is returned,
-- with its earlier state, and whether the transition was applied (ok).
WITH move AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@want_jobs::bigint[]) AS want_job,
        unnest(@want_attempts::integer[]) AS want_attempt,
        unnest(@want_versions::integer[]) AS want_version,
        unnest(@want_statuses::text[]) AS want_status,
        unnest(@want_expired::boolean[]) AS want_expired,
        unnest(@statuses::text[])::task_status AS status,
        unnest(@events::text[])::task_event_type AS event,
        unnest(@event_ids::bigint[]) AS event_id,
        unnest(@agos::bigint[]) * interval '1 microsecond' AS ago,
        unnest(@actors::text[]) AS actor,
        unnest(@payloads::text[]) AS payload,
        unnest(@outputs::text[]) AS output,
        unnest(@errors::text[]) AS error,
        unnest(@begins::boolean[]) AS begins,
        unnest(@not_counted::boolean[]) AS not_counted,
        unnest(@outcomes::text[]) AS outcome,
        unnest(@executor_ids::text[]) AS executor_id,
        unnest(@failures::integer[]) AS failures,
        unnest(@crashes::integer[]) AS crashes,
        unnest(@job_ends::text[]) AS job_end,
        unnest(@next_jobs::bigint[]) AS next_job,
        unnest(@next_lanes::text[]) AS next_lane,
        unnest(@next_kinds::text[]) AS next_kind,
        unnest(@next_delays::bigint[]) * interval '1 microsecond' AS next_delay,
        unnest(@timeouts::bigint[]) AS timeout_ms,
        unnest(@assignments::text[]) AS assignment,
        unnest(@lease_kinds::text[]) AS lease_kind,
        unnest(@lease_requests::text[]) AS lease_request,
        unnest(@visibilities::bigint[]) AS visibility_ms,
        unnest(@to_deadlines::boolean[]) AS lease_to_deadline,
        unnest(@inputs::text[]) AS input,
        unnest(@deadlines::bigint[]) AS deadline
),
locked AS MATERIALIZED (
    SELECT
        move.*,
-- The statement may have waited for locks: the times of a task must stay in order.
        greatest(now() - move.ago, t.created_at, t.assigned_at, t.started_at, t.ended_at) AS at,
        t.type AS task_type, t.tenant_id, t.definition_id, t.job_id AS old_job, t.status AS was, t.lane AS old_lane, t.attempt AS old_attempt, t.version AS old_version,
        (t.callback_url IS NOT NULL)::boolean AS calls_back,
        (
            (move.want_job = -1 OR move.want_job = t.job_id)
            AND (move.want_attempt = -1 OR move.want_attempt = t.attempt)
            AND (move.want_version = -1 OR move.want_version = t.version)
            AND t.status::text = ANY (string_to_array(move.want_status, ','))
            AND (
                NOT move.want_expired
                OR EXISTS (SELECT FROM lease l WHERE l.task_id = move.task_id AND l.expires_at <= now())
            )
        )::boolean AS ok
    FROM move
    JOIN task t ON t.task_id = move.task_id
    ORDER BY t.task_id
    FOR UPDATE OF t
),
moved AS (
    UPDATE task t
    SET
        status = locked.status,
        version = t.version + 1,
        attempt = t.attempt + CASE WHEN locked.begins THEN 1 WHEN locked.not_counted THEN -1 ELSE 0 END,
-- A redrive is a new start: the retry policy counts from here.
        failures = CASE WHEN locked.event = 'redriven' THEN 0 ELSE t.failures + locked.failures END,
        crashes = CASE WHEN locked.event = 'redriven' THEN 0 ELSE t.crashes + locked.crashes END,
        input = CASE WHEN locked.input <> '' THEN locked.input::jsonb ELSE t.input END,
        job_id = CASE WHEN locked.next_job > 0 THEN locked.next_job ELSE t.job_id END,
        lane = CASE WHEN locked.next_lane <> '' THEN locked.next_lane::task_lane ELSE t.lane END,
        started_at = CASE
            WHEN NOT locked.begins THEN t.started_at
            WHEN locked.was = 'ASSIGNED' AND locked.outcome <> '' THEN t.assigned_at
            ELSE locked.at
        END,
        ended_at = CASE WHEN locked.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT') THEN locked.at END,
        next_retry_at = CASE
            WHEN locked.event = 'retry' THEN locked.at + locked.next_delay
            WHEN locked.begins OR locked.status <> 'PENDING' THEN NULL
            ELSE t.next_retry_at
        END,
        output = CASE WHEN locked.output <> '' THEN locked.output::jsonb ELSE t.output END,
        error = CASE
            WHEN locked.error <> '' THEN locked.error::jsonb || jsonb_build_object('timestamp', locked.at)
            WHEN locked.status = 'COMPLETED' THEN NULL
            ELSE t.error
        END,
        assigned_at = CASE WHEN locked.assignment <> '' THEN locked.at ELSE t.assigned_at END,
        assignee_id = CASE WHEN locked.assignment <> '' THEN locked.assignment::jsonb ->> 'assigneeId' ELSE t.assignee_id END,
        assignee_name = CASE WHEN locked.assignment <> '' THEN locked.assignment::jsonb ->> 'assigneeName' ELSE t.assignee_name END,
        group_id = CASE WHEN locked.assignment <> '' THEN locked.assignment::jsonb ->> 'groupId' ELSE t.group_id END,
        candidates = CASE
            WHEN locked.assignment <> '' THEN nullif(coalesce(locked.assignment::jsonb -> 'candidates', t.candidates), 'null')
            ELSE t.candidates
        END,
        due_at = CASE
            WHEN locked.assignment <> '' THEN coalesce((locked.assignment::jsonb ->> 'dueAt')::timestamptz, t.due_at)
            ELSE t.due_at
        END,
        deadline_id = CASE WHEN locked.deadline > 0 THEN locked.deadline ELSE t.deadline_id END
    FROM locked
    WHERE t.task_id = locked.task_id AND locked.ok
    RETURNING
        t.task_id, t.version, t.attempt, t.job_id, t.type, t.priority, t.lane, t.started_at, t.workflow_id,
        t.correlation_id, t.traceparent, t.callback_url, locked.old_job, locked.old_lane, locked.was, locked.status, locked.event,
        locked.event_id, locked.at, locked.actor, locked.payload, locked.error, locked.begins, locked.not_counted, locked.outcome,
        locked.executor_id, locked.job_end, locked.next_job, locked.next_kind, locked.at + locked.next_delay AS next_at, locked.timeout_ms,
        locked.lease_kind, locked.lease_request, locked.visibility_ms, locked.lease_to_deadline, locked.deadline
),
ended_job AS (
    UPDATE river_job j
    SET
        state = moved.job_end::river_job_state,
        finalized_at = moved.at,
        errors = CASE
            WHEN moved.error = '' THEN j.errors
            ELSE array_append(j.errors, jsonb_build_object(
                'at', moved.at, 'attempt', greatest(j.attempt, 1), 'error', moved.error::jsonb ->> 'code', 'trace', ''))
        END
    FROM moved
    WHERE moved.job_end <> '' AND j.id = moved.old_job
        AND (j.state IN ('available', 'pending', 'retryable', 'running', 'scheduled')) IS TRUE
),
new_job AS (
    INSERT INTO river_job (
        id, state, attempt, max_attempts, created_at, scheduled_at, priority, args, kind, metadata, queue, tags
    )
    SELECT
        moved.next_job,
-- Jobs due within five seconds do not wait for River's leader to make them available.
        CASE WHEN moved.next_at <= now() + interval '5 seconds' THEN 'available'::river_job_state ELSE 'scheduled' END,
        0, 1, moved.at, moved.next_at, moved.priority,
        jsonb_build_object('task_id', moved.task_id, 'attempt', moved.attempt + 1, 'timeout_ms', moved.timeout_ms),
        moved.next_kind,
        jsonb_strip_nulls(jsonb_build_object('correlationId', moved.correlation_id, 'traceparent', moved.traceparent)), moved.lane::text,
        ARRAY['task-' || moved.task_id::text]
    FROM moved
    WHERE moved.next_job > 0
),
-- The first job of the chain of notices and reminders for the assignee.
new_deadline AS (
    INSERT INTO river_job (
        id, state, attempt, max_attempts, created_at, scheduled_at, priority, args, kind, metadata, queue, tags
    )
    SELECT
        moved.deadline, 'available', 0, 32767, moved.at, now(), moved.priority,
        jsonb_build_object('task_id', moved.task_id, 'deadline_id', moved.deadline, 'percent', 0),
        'notice.deadline', '{}', 'task-notices', ARRAY['task-' || moved.task_id::text]
    FROM moved
    WHERE moved.deadline > 0
),
new_lease AS (
    INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, deadline_at, owner, request_id)
    SELECT
        moved.task_id, moved.job_id, moved.attempt, moved.lease_kind::lease_kind, moved.visibility_ms,
        now() + make_interval(secs => CASE
            WHEN moved.lease_to_deadline THEN moved.timeout_ms
            ELSE least(moved.visibility_ms, moved.timeout_ms)
        END / 1000.0),
        now() + make_interval(secs => moved.timeout_ms / 1000.0),
        moved.executor_id, nullif(moved.lease_request, '')
    FROM moved
    WHERE moved.lease_kind <> ''
-- A lease of an earlier attempt may still exist, if the end of that attempt was committed
-- concurrently with its start, and did not see the lease.
    ON CONFLICT (task_id) DO UPDATE
    SET job_id = excluded.job_id, attempt = excluded.attempt, kind = excluded.kind, visibility_ms = excluded.visibility_ms,
        expires_at = excluded.expires_at, deadline_at = excluded.deadline_at, owner = excluded.owner, invocation_id = NULL,
        request_id = excluded.request_id
),
ended_lease AS (
    DELETE FROM lease l
    USING moved
    WHERE l.task_id = moved.task_id AND moved.lease_kind = ''
),
attempt AS (
    INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id, error)
    SELECT
        moved.task_id, moved.attempt, nullif(moved.outcome, '')::attempt_outcome, moved.old_job, moved.started_at,
        CASE WHEN moved.outcome <> '' THEN moved.at END, moved.executor_id, nullif(moved.error, '')::jsonb || jsonb_build_object('timestamp', moved.at)
    FROM moved
    WHERE moved.begins OR (moved.outcome <> '' AND moved.was = 'RUNNING' AND NOT moved.not_counted)
    ON CONFLICT (task_id, attempt) DO UPDATE
    SET outcome = excluded.outcome, ended_at = excluded.ended_at, error = excluded.error
),
-- A released attempt is not counted: the next attempt reuses its number, and with it the
-- idempotency key that peer services know.
unspent_attempt AS (
    DELETE FROM task_attempt a
    USING moved
    WHERE moved.not_counted AND a.task_id = moved.task_id AND a.attempt = moved.attempt + 1
),
new_event AS (
    INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor, payload)
    SELECT
        moved.event_id, moved.task_id, moved.at, moved.version,
        moved.attempt + CASE WHEN moved.not_counted THEN 1 ELSE 0 END, moved.event, moved.was, moved.status,
        moved.actor,
        CASE
            WHEN moved.event = 'retry' THEN (moved.payload::jsonb || jsonb_build_object('nextRetryTime', moved.next_at))::text
            ELSE nullif(moved.payload, '')
        END
    FROM moved
    RETURNING id
),
new_outbox AS (
    INSERT INTO outbox (lo, hi)
    SELECT min(new_event.id), max(new_event.id) + 1
    FROM new_event
    HAVING count(*) > 0
),
new_callback AS (
    INSERT INTO callback (task_id, told, upto, since, host)
    SELECT moved.task_id, moved.version - 1, moved.version, moved.at, callback_host(moved.callback_url)
    FROM moved
    WHERE moved.callback_url IS NOT NULL AND callback_tells(moved.event)
    ORDER BY moved.task_id
    ON CONFLICT (task_id) DO UPDATE SET upto = excluded.upto
),
new_tally AS (
    INSERT INTO tally_delta (at, type, lane, event, was, now, n, run_ms)
    SELECT
        max(moved.at), moved.type, moved.old_lane, moved.event, moved.was, moved.status, count(*),
        coalesce(sum(extract(epoch FROM moved.at - moved.started_at) * 1000) FILTER (WHERE moved.status = 'COMPLETED'), 0)::bigint
    FROM moved
    GROUP BY moved.type, moved.old_lane, moved.event, moved.was, moved.status
)
SELECT locked.task_id::uuid AS task_id, locked.ok, locked.was, locked.old_job, locked.old_attempt, locked.old_version, locked.calls_back, locked.at::timestamptz AS at,
    locked.task_type, locked.tenant_id, locked.definition_id
FROM locked;
