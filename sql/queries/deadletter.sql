-- name: DeadLetterReach :one
-- The end of a walk that begins at a position: no row if the walk reaches the last dead letter.
--
-- Dead letters are walked in the order of the fetching index (priority, then age), at most
-- walk of them. The task of each is looked up by id: the LIMIT keeps the planner from
-- reading the whole of task.
SELECT j.priority, j.scheduled_at, j.id
FROM river_job j
WHERE j.state = 'available' AND j.queue = 'task-execution-deadletter' AND j.kind = 'task.deadletter'
    AND (j.priority, j.scheduled_at, j.id) > (@after_priority::smallint, @after_at::timestamptz, @after_id::bigint)
ORDER BY j.priority, j.scheduled_at, j.id
LIMIT 1
OFFSET @skip::integer;

-- name: DeadLetterList :many
WITH walked AS MATERIALIZED (
    SELECT j.id, j.priority, j.scheduled_at, job_task(j.args) AS task_id
    FROM river_job j
    WHERE j.state = 'available' AND j.queue = 'task-execution-deadletter' AND j.kind = 'task.deadletter'
        AND (j.priority, j.scheduled_at, j.id) > (@after_priority::smallint, @after_at::timestamptz, @after_id::bigint)
        AND (j.priority, j.scheduled_at, j.id) <= (@until_priority::smallint, @until_at::timestamptz, @until_id::bigint)
    ORDER BY j.priority, j.scheduled_at, j.id
    LIMIT @walk::integer
),
letter AS (
    SELECT
        walked.id, walked.priority, walked.scheduled_at, t.task_id, t.definition_id, t.workflow_id, t.type, t.attempt,
        t.ended_at, t.code, t.message, report.failure_fingerprint(t.definition_id, t.code, t.message)::text AS fingerprint
    FROM walked
    CROSS JOIN LATERAL (
        SELECT
            k.task_id, k.tenant_id, k.definition_id, k.workflow_id, k.type, k.attempt, k.ended_at,
            coalesce(k.error ->> 'code', '')::text AS code, coalesce(k.error ->> 'message', '')::text AS message
        FROM task k
        WHERE k.task_id = walked.task_id AND k.job_id = walked.id AND k.ended_at IS NOT NULL
        LIMIT 1
    ) t
    WHERE t.tenant_id = @tenant_id::text
        AND (@type::text = '' OR t.type::text = @type::text)
        AND (@definition_id::text = '' OR t.definition_id = @definition_id::text)
        AND (@error_code::text = '' OR t.code = @error_code::text)
        AND t.ended_at >= @since::timestamptz
)
SELECT
    letter.id, letter.priority, letter.scheduled_at, letter.task_id, letter.definition_id, letter.workflow_id, letter.type,
    letter.attempt, letter.ended_at, letter.code, letter.message, letter.fingerprint
FROM letter
WHERE @fingerprint::text = '' OR letter.fingerprint = @fingerprint::text
ORDER BY letter.priority, letter.scheduled_at, letter.id
LIMIT @page::integer;

-- name: DeadLetterGroups :many
-- Groups of similar dead letters, the largest group first.
WITH walked AS MATERIALIZED (
    SELECT j.id, job_task(j.args) AS task_id
    FROM river_job j
    WHERE j.state = 'available' AND j.queue = 'task-execution-deadletter' AND j.kind = 'task.deadletter'
    ORDER BY j.priority, j.scheduled_at, j.id
    LIMIT @walk::integer
),
letter AS (
    SELECT
        t.task_id, t.definition_id, t.ended_at, t.code, report.message_pattern(t.message)::text AS pattern,
        report.failure_fingerprint(t.definition_id, t.code, t.message)::text AS fingerprint
    FROM walked
    CROSS JOIN LATERAL (
        SELECT
            k.task_id, k.tenant_id, k.definition_id, k.type, k.ended_at,
            coalesce(k.error ->> 'code', '')::text AS code, coalesce(k.error ->> 'message', '')::text AS message
        FROM task k
        WHERE k.task_id = walked.task_id AND k.job_id = walked.id AND k.ended_at IS NOT NULL
        LIMIT 1
    ) t
    WHERE t.tenant_id = @tenant_id::text
        AND (@type::text = '' OR t.type::text = @type::text)
        AND (@definition_id::text = '' OR t.definition_id = @definition_id::text)
        AND (@error_code::text = '' OR t.code = @error_code::text)
        AND t.ended_at >= @since::timestamptz
),
alike AS (
    SELECT
        letter.fingerprint, letter.code, letter.pattern, letter.definition_id, count(*) AS n,
        min(letter.ended_at)::timestamptz AS first_at, max(letter.ended_at)::timestamptz AS last_at,
        ((array_agg(letter.task_id ORDER BY letter.ended_at DESC, letter.task_id))[1:3])::uuid[] AS samples
    FROM letter
    GROUP BY letter.fingerprint, letter.code, letter.pattern, letter.definition_id
)
SELECT alike.fingerprint, alike.code, alike.pattern, alike.definition_id, alike.n, alike.first_at, alike.last_at, alike.samples
FROM alike
WHERE (alike.n, alike.fingerprint) < (@after_n::bigint, @after_fingerprint::text)
ORDER BY alike.n DESC, alike.fingerprint DESC
LIMIT @page::integer;

-- name: DeadLetterDiscard :many
-- Discards a dead letter, leased or not; with want_job, only that job's. gone: the job has
-- been ended or deleted already. Returns one row, or none if there is no dead letter.
WITH letter AS MATERIALIZED (
    SELECT t.task_id, t.job_id
    FROM task t
    -- Not OR EXISTS, for which the planner may read the whole table.
    LEFT JOIN river_job j ON j.id = t.job_id AND j.kind = 'task.deadletter' AND (j.state IN ('available', 'running')) IS TRUE
    WHERE t.task_id = @task_id AND t.tenant_id = @tenant_id AND t.status IN ('FAILED', 'TIMED_OUT')
        AND (@want_job::bigint = 0 OR t.job_id = @want_job::bigint)
        AND (@gone::boolean OR j.id IS NOT NULL)
    FOR UPDATE OF t
),
ended_lease AS (
    DELETE FROM lease l
    USING letter
    WHERE l.task_id = letter.task_id
),
ended_job AS (
    UPDATE river_job j
    SET state = 'discarded', finalized_at = now()
    FROM letter
    WHERE j.id = letter.job_id AND (j.state IN ('available', 'running')) IS TRUE
),
laid_aside AS (
    UPDATE task t
    SET job_id = 0
    FROM letter
    WHERE t.task_id = letter.task_id
    RETURNING t.type, t.lane, t.status
),
-- From FAILED to FAILED: the event by which the depth of the queue decreases.
new_tally AS (
    INSERT INTO tally_delta (at, type, lane, event, was, now, n, run_ms)
    SELECT now(), laid_aside.type, laid_aside.lane, 'released', laid_aside.status, laid_aside.status, 1, 0
    FROM laid_aside
)
INSERT INTO dead_letter_discard (task_id, job_id, actor, reason)
SELECT letter.task_id, letter.job_id, @actor, @reason
FROM letter
RETURNING task_id, at, actor, reason;

-- name: DeadLetterDiscarded :one
SELECT d.task_id, d.job_id, d.at, d.actor, d.reason
FROM dead_letter_discard d
WHERE d.task_id = @task_id;

-- name: DeadLetterTasks :many
-- The columns of tasks that a redrive needs, and whether each task is a dead letter.
SELECT
    t.task_id, t.tenant_id, t.status, t.version, t.job_id, t.type, t.executor, t.definition_id, t.own_definition, t.revision,
    t.config,
    (CASE WHEN @with_input::boolean THEN t.input END)::jsonb AS input,
    (t.status IN ('FAILED', 'TIMED_OUT') AND j.id IS NOT NULL)::boolean AS dead
FROM task t
LEFT JOIN river_job j ON j.id = t.job_id AND j.kind = 'task.deadletter' AND (j.state IN ('available', 'running')) IS TRUE
WHERE t.task_id = ANY (@task_ids::uuid[]);

-- name: RedriveCreate :exec
INSERT INTO redrive_operation (
    operation_id, tenant_id, actor, reason, state, ended_at, rate, canary_count, canary_ratio, matched, selection, input_patch
)
VALUES (
    @operation_id, @tenant_id, @actor, @reason, @state,
    CASE WHEN @matched::integer = 0 THEN now() END, @rate, @canary_count, @canary_ratio, @matched::integer, @selection, nullif(@input_patch::text, '')::jsonb
);

-- name: RedriveAdd :exec
INSERT INTO redrive_item (operation_id, n, task_id)
SELECT @operation_id, item.n, item.task_id
FROM (SELECT unnest(@ns::integer[]) AS n, unnest(@task_ids::uuid[]) AS task_id) item;

-- name: RedriveGet :one
SELECT * FROM redrive_operation WHERE operation_id = @operation_id AND tenant_id = @tenant_id;

-- name: RedriveNext :many
-- The open operation that has waited longest, locked for one process; elapsed is the number
-- of seconds since the operation was last paced.
SELECT sqlc.embed(o), extract(epoch FROM now() - o.paced_at)::float8 AS elapsed
FROM redrive_operation o
WHERE o.state IN ('CANARY', 'RUNNING') AND o.paced_at <= now() - make_interval(secs => 1.0 / o.rate)
ORDER BY o.paced_at
LIMIT 1
FOR UPDATE SKIP LOCKED;

-- name: RedrivePace :exec
UPDATE redrive_operation o
SET
    state = @state::redrive_state,
    paced_at = now() - make_interval(secs => @unused_seconds::float8),
    ended_at = CASE WHEN @state::redrive_state NOT IN ('CANARY', 'RUNNING') THEN now() END,
    stopped_at = CASE WHEN @state::redrive_state = 'STOPPED' THEN now() END,
    stopped_by = CASE WHEN @state::redrive_state = 'STOPPED' THEN @stopped_by::text END,
    stop_reason = CASE WHEN @state::redrive_state = 'STOPPED' THEN @stop_reason::text END
WHERE o.operation_id = @operation_id;

-- name: RedriveStop :exec
UPDATE redrive_operation o
SET state = 'STOPPED', ended_at = now(), stopped_at = now(), stopped_by = @stopped_by::text, stop_reason = @stop_reason::text
WHERE o.operation_id = @operation_id AND o.state IN ('CANARY', 'RUNNING');

-- name: RedriveUndone :exec
UPDATE redrive_operation o
SET state = 'UNDONE', undone_at = now(), undone_by = @undone_by::text, undo_reason = @undo_reason::text
WHERE o.operation_id = @operation_id;

-- name: RedriveWaiting :many
SELECT i.n, i.task_id
FROM redrive_item i
WHERE i.operation_id = @operation_id AND i.state = 'WAITING'
ORDER BY i.n
LIMIT @page::integer;

-- name: RedriveSettle :exec
UPDATE redrive_item i
SET state = item.state::redrive_item_state, seq = coalesce(nullif(item.seq, 0), i.seq), code = nullif(item.code, '')
FROM (
    SELECT unnest(@ns::integer[]) AS n, unnest(@states::text[]) AS state, unnest(@seqs::integer[]) AS seq, unnest(@codes::text[]) AS code
) item
WHERE i.operation_id = @operation_id AND i.n = item.n;

-- name: RedriveTrace :many
-- The transitions of an operation on these tasks, for an operation whose own record of them
-- was lost.
SELECT e.task_id, e.seq
FROM (SELECT unnest(@task_ids::uuid[]) AS task_id) asked
CROSS JOIN LATERAL (
    SELECT v.task_id, v.seq, v.payload
    FROM task_event v
    WHERE v.task_id = asked.task_id AND v.type = 'redriven'
    ORDER BY v.seq DESC
    LIMIT 1
) e
WHERE e.payload::jsonb ->> 'operationId' = @operation_id::text;

-- name: RedriveCount :one
-- The number of tasks of an operation in each state.
SELECT
    count(*) FILTER (WHERE i.state = 'WAITING')::integer AS waiting,
    count(*) FILTER (WHERE i.state = 'REJECTED')::integer AS rejected,
    count(*) FILTER (WHERE i.state = 'UNDONE')::integer AS undone,
    count(*) FILTER (WHERE i.state = 'REDRIVEN')::integer AS redriven,
    count(*) FILTER (WHERE i.state = 'REDRIVEN' AND t.status = 'COMPLETED')::integer AS completed,
    count(*) FILTER (WHERE i.state = 'REDRIVEN' AND t.status IN ('FAILED', 'TIMED_OUT'))::integer AS failed,
    count(*) FILTER (WHERE i.state = 'REDRIVEN' AND t.status = 'CANCELLED')::integer AS cancelled
FROM redrive_item i
CROSS JOIN LATERAL (SELECT k.status FROM task k WHERE k.task_id = i.task_id LIMIT 1) t
WHERE i.operation_id = @operation_id;

-- name: RedriveRejected :many
SELECT i.task_id, coalesce(i.code, '')::text AS code
FROM redrive_item i
WHERE i.operation_id = @operation_id AND i.state = 'REJECTED'
ORDER BY i.n
LIMIT 1000;

-- name: RedriveUndoable :many
-- Tasks that an operation has redriven and that have not been started, with their earlier
-- state.
SELECT i.n, i.task_id, t.version, e.was, e.payload
FROM redrive_item i
CROSS JOIN LATERAL (
    SELECT k.version FROM task k WHERE k.task_id = i.task_id AND k.version = i.seq AND k.status = 'PENDING' LIMIT 1
) t
JOIN task_event e ON e.task_id = i.task_id AND e.seq = i.seq
WHERE i.operation_id = @operation_id AND i.state = 'REDRIVEN' AND i.n > @after::integer
ORDER BY i.n
LIMIT @page::integer;
