-- name: WorkerClaim :many
-- Claims the jobs of a queue that a remote worker can run: of its tenant, and of the
-- definitions that it names (none: all). The jobs are found in ready, so that the cost does
-- not depend on what waits for others. CRITICAL jobs have at least half of a claim; the order
-- within both halves is that of ready.rank.
--
-- Of at most walk jobs, at most most are claimed. Jobs of paused tasks are claimed beside them
-- and returned as paused: LanePark holds them back, so that they are skipped once and not by
-- each dequeue.
WITH RECURSIVE place AS (
    SELECT p.place
    FROM (SELECT unnest(@places::text[]) AS place) p
    WHERE NOT EXISTS (SELECT FROM river_queue q WHERE q.name = @lane::text AND q.paused_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM maintenance m WHERE m.lane = CAST(@lane::text AS task_lane) AND (m.until IS NULL OR m.until > now()))
),
-- Of a worker that takes all definitions: those that have work, by skipping along the index.
known AS (
    SELECT place.place, (
        SELECT r.definition_id
        FROM ready r
        WHERE r.place = place.place AND r.tenant_id = @tenant_id::text
        ORDER BY r.place, r.tenant_id, r.definition_id
        LIMIT 1
    ) AS definition_id
    FROM place
    WHERE cardinality(@definition_ids::text[]) = 0
    UNION ALL
    SELECT known.place, (
        SELECT r.definition_id
        FROM ready r
        WHERE r.place = known.place AND r.tenant_id = @tenant_id::text AND r.definition_id > known.definition_id
        ORDER BY r.place, r.tenant_id, r.definition_id
        LIMIT 1
    )
    FROM known
    WHERE known.definition_id IS NOT NULL
),
head AS MATERIALIZED (
    SELECT first.job_id, first.rank, flow.urgent
    FROM (
        SELECT known.place, known.definition_id FROM known WHERE known.definition_id IS NOT NULL
        UNION ALL
        SELECT place.place, named.id FROM place CROSS JOIN (SELECT DISTINCT unnest(@definition_ids::text[]) AS id) named
    ) at
    CROSS JOIN (SELECT true AS urgent UNION ALL SELECT false) flow
    CROSS JOIN LATERAL (
        SELECT r.job_id, r.rank
        FROM ready r
        WHERE r.place = at.place AND r.tenant_id = @tenant_id::text AND r.definition_id = at.definition_id AND r.urgent = flow.urgent
            AND r.due_at <= now()
        ORDER BY r.place, r.tenant_id, r.definition_id, r.urgent, r.rank
-- More than the walk: claims that run at the same time have locked the first ones.
        LIMIT @spare::integer
    ) first
),
-- The first half of the walk is reserved for CRITICAL.
reserved AS (
    SELECT @walk::integer AS walk, h.job_id, h.rank, h.urgent, row_number() OVER (PARTITION BY h.urgent ORDER BY h.rank, h.job_id) AS nth
    FROM head h
),
ordered AS MATERIALIZED (
    SELECT r.job_id, row_number() OVER (ORDER BY r.urgent AND 2 * r.nth <= r.walk + 1 DESC, r.rank, r.job_id) AS nth
    FROM reserved r
),
picked AS MATERIALIZED (
    SELECT locked.job_id, ordered.nth
    FROM (SELECT o.job_id, o.nth FROM ordered o ORDER BY o.nth LIMIT @spare::integer) ordered
    CROSS JOIN LATERAL (SELECT r.job_id FROM ready r WHERE r.job_id = ordered.job_id LIMIT 1 FOR UPDATE SKIP LOCKED) locked
    ORDER BY ordered.nth
    LIMIT @walk::integer
),
-- Who cancels a job locks it, and then its row in ready: so nobody waits for it here.
open AS MATERIALIZED (
    SELECT j.id, t.task_id, picked.nth
    FROM picked
    JOIN river_job j ON j.id = picked.job_id AND (j.state = 'available') IS TRUE
    JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status = 'PENDING' AND t.tenant_id = @tenant_id::text
    ORDER BY picked.nth
    FOR UPDATE OF j SKIP LOCKED
),
-- A row that nothing stands behind any more would be met by every claim.
stale AS (
    DELETE FROM ready r
    WHERE r.job_id = ANY (ARRAY(
        SELECT picked.job_id
        FROM picked
        WHERE NOT EXISTS (
            SELECT
            FROM river_job j
            JOIN task t ON t.task_id = job_task(j.args) AND t.job_id = j.id AND t.status = 'PENDING'
            WHERE j.id = picked.job_id AND (j.state = 'available') IS TRUE
        )
    ))
),
judged AS MATERIALIZED (
    SELECT
        open.id, open.task_id, open.nth,
        CASE
            WHEN (SELECT EXISTS (SELECT FROM pause i WHERE i.resumed_at IS NULL AND i.scope IN ('definition', 'task')))
                THEN EXISTS (
                    SELECT
                    FROM task t
                    CROSS JOIN LATERAL task_pauses(t.task_id, t.tenant_id, t.definition_id, t.own_definition) AS c (id)
                    WHERE t.task_id = open.task_id
                )
            ELSE false
        END AS paused
    FROM open
),
next AS (
    SELECT judged.id, judged.task_id, judged.nth
    FROM judged
    WHERE NOT judged.paused
    ORDER BY judged.nth
    LIMIT @most::integer
),
-- The answer is limited in bytes too, except for the first job: the others wait.
weighed AS (
    SELECT
        next.id,
        sum(octet_length(t.input::text) + coalesce(octet_length(t.context::text), 0)) OVER (
            ORDER BY next.nth
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before
    FROM next
    JOIN task t ON t.task_id = next.task_id
),
free AS (
    SELECT weighed.id, false AS paused
    FROM weighed
    WHERE weighed.before IS NULL OR weighed.before < @most_bytes::bigint
    UNION ALL
    SELECT judged.id, true
    FROM judged
    WHERE judged.paused
),
claimed AS (
    UPDATE river_job j
    SET
        state = 'running',
        attempt = j.attempt + 1,
        attempted_at = now(),
        attempted_by = ARRAY[@executor_id::text]
    FROM free
    WHERE j.id = free.id
    RETURNING j.id, job_task(j.args) AS task_id, free.paused
)
SELECT
    claimed.id AS job_id, claimed.paused, t.task_id, t.attempt, t.type, t.tenant_id, t.definition_id, t.own_definition, t.revision, t.config
FROM claimed
JOIN task t ON t.task_id = claimed.task_id;

-- name: ReadyFor :many
-- Which waiting dequeues can find work, by one index probe for each: each looks in a queue, at a
-- place, for a tenant and a definition (empty: any). Returned are their numbers. A join, because
-- the planner of PostgreSQL 18 would read the whole table for an EXISTS.
SELECT waiting.n::integer AS n
FROM (
    SELECT
        unnest(@numbers::integer[]) AS n,
        unnest(@lanes::text[]) AS lane,
        unnest(@places::text[]) AS place,
        unnest(@tenant_ids::text[]) AS tenant_id,
        unnest(@definition_ids::text[]) AS definition_id
) waiting
CROSS JOIN LATERAL (
    SELECT r.job_id
    FROM ready r
    WHERE r.place = waiting.place AND r.tenant_id = waiting.tenant_id
        AND r.definition_id >= waiting.definition_id
        AND r.definition_id <= CASE waiting.definition_id WHEN '' THEN chr(1114111) ELSE waiting.definition_id END
        AND r.due_at <= now()
    ORDER BY r.place, r.tenant_id, r.definition_id
    LIMIT 1
) ready
WHERE NOT EXISTS (SELECT FROM river_queue q WHERE q.name = waiting.lane AND q.paused_at IS NOT NULL)
    AND NOT EXISTS (SELECT FROM maintenance m WHERE m.lane::text = waiting.lane AND (m.until IS NULL OR m.until > now()));

-- name: WorkerAnswered :many
-- Which of these requests of workers have leases.
SELECT DISTINCT t.tenant_id, l.owner, l.request_id::text AS request_id
FROM (SELECT unnest(@owners::text[]) AS owner, unnest(@request_ids::text[]) AS request_id) asked
JOIN lease l ON l.owner = asked.owner AND l.request_id = asked.request_id
JOIN task t ON t.task_id = l.task_id;

-- name: WorkerLeases :many
-- The leases of one request of one worker, with their tasks, in the order of the answer: dead
-- letters, retries, others. A checkpoint from before a redrive that changed the input
-- belongs to other work, and is left out.
SELECT
    l.job_id, l.attempt, l.visibility_ms, l.expires_at, j.created_at AS enqueued_at, c.progress, c.checkpoint,
    t.task_id, t.tenant_id, t.workflow_id, t.step_id, t.type, t.priority, t.definition_id, t.own_definition, t.revision,
    t.correlation_id, t.traceparent,
    t.input, t.config, t.context, l.kind, t.status, t.error
FROM lease l
JOIN task t ON t.task_id = l.task_id AND t.job_id = l.job_id AND t.attempt = l.attempt
    AND (t.status = 'RUNNING' OR (l.kind = 'letter' AND t.status IN ('FAILED', 'TIMED_OUT')))
JOIN river_job j ON j.id = l.job_id
LEFT JOIN task_checkpoint c ON c.task_id = l.task_id
    AND NOT EXISTS (
        SELECT
        FROM task_event e
        WHERE e.task_id = c.task_id AND e.type = 'redriven' AND e.attempt >= c.attempt AND e.payload::jsonb ? 'input'
    )
WHERE l.owner = @owner AND l.request_id = @request_id::text AND t.tenant_id = @tenant_id
ORDER BY l.kind <> 'letter', t.lane <> 'task-execution-retry', t.priority, l.job_id;

-- name: WorkerBeat :many
-- Heartbeats: extend leases from now, at most to their deadlines, and store the worker's
-- checkpoint. A lease that is not returned is lost. The token proves that the lease is a
-- worker's; a condition on that would make the planner read all leases first.
WITH beat AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@job_ids::bigint[]) AS job_id,
        unnest(@extend_ms::bigint[]) AS extend_ms,
        unnest(@progress::text[]) AS progress,
        unnest(@checkpoints::text[]) AS checkpoint
),
-- In one order, independent of the caller's: two heartbeats of the same leases in different
-- orders would wait for each other.
held AS MATERIALIZED (
    SELECT beat.task_id, beat.job_id, beat.extend_ms, beat.progress, beat.checkpoint
    FROM beat
    JOIN lease l ON l.task_id = beat.task_id AND l.job_id = beat.job_id
    JOIN task t ON t.task_id = beat.task_id AND t.tenant_id = @tenant_id::text
    ORDER BY l.job_id
    FOR UPDATE OF l
),
kept AS (
    UPDATE lease l
    SET expires_at = least(
        now() + make_interval(secs => CASE WHEN held.extend_ms > 0 THEN held.extend_ms ELSE l.visibility_ms END / 1000.0),
        l.deadline_at
    )
    FROM held
    WHERE l.task_id = held.task_id AND l.job_id = held.job_id
    RETURNING l.task_id, l.job_id, l.attempt, l.expires_at, l.owner, held.progress, held.checkpoint
),
noted AS (
    INSERT INTO task_checkpoint (task_id, attempt, progress, checkpoint)
    SELECT kept.task_id, kept.attempt, nullif(kept.progress, '')::jsonb, nullif(kept.checkpoint, '')::jsonb
    FROM kept
    WHERE kept.progress <> '' OR kept.checkpoint <> ''
    ON CONFLICT (task_id) DO UPDATE
    SET
        attempt = excluded.attempt,
        at = now(),
-- The next attempt continues from the checkpoint, and reports its own progress.
        progress = coalesce(excluded.progress, CASE WHEN task_checkpoint.attempt = excluded.attempt THEN task_checkpoint.progress END),
        checkpoint = coalesce(excluded.checkpoint, task_checkpoint.checkpoint)
)
SELECT kept.job_id, kept.expires_at, kept.owner
FROM kept;

-- name: WorkerSaid :one
-- The end of an attempt, whether this report is a repetition of the report that ended the
-- attempt, and the state of the task afterwards.
SELECT
    a.outcome,
    (t.output IS NOT DISTINCT FROM nullif(@output::text, '')::jsonb)::boolean AS same_output,
    coalesce(a.error - 'timestamp' = nullif(@error::text, '')::jsonb - 'timestamp', false)::boolean AS same_error,
    e.seq, e.now, coalesce(e.payload, '')::text AS payload
FROM task_attempt a
JOIN task t ON t.task_id = a.task_id
CROSS JOIN LATERAL (
    SELECT v.seq, v.now, v.payload
    FROM task_event v
    WHERE v.task_id = a.task_id AND v.attempt = a.attempt AND v.type IN ('completed', 'failed', 'retry')
    ORDER BY v.seq DESC
    LIMIT 1
) e
WHERE a.task_id = @task_id AND a.attempt = @attempt AND a.job_id = @job_id;

-- name: WorkerReleased :one
-- The report with which a token was given back, and the state of the task afterwards.
SELECT e.seq, e.payload::text AS payload
FROM task_event e
WHERE e.task_id = @task_id AND e.type = 'released' AND (e.payload::jsonb ->> 'jobId')::bigint = @job_id::bigint
ORDER BY e.seq DESC
LIMIT 1;

-- name: LetterReturned :one
-- The reason why a dead letter was put back; empty without a reason.
SELECT coalesce(j.errors[cardinality(j.errors)] ->> 'error', '')::text AS why
FROM river_job j
WHERE j.id = @job_id AND j.state = 'cancelled' AND j.args ->> 'task_id' = @task_id::text
    AND NOT EXISTS (SELECT FROM dead_letter_discard d WHERE d.task_id = CAST(@task_id::text AS uuid) AND d.job_id = j.id);

-- name: SecretKey :one
-- The key of that name: this one, unless there is one already.
INSERT INTO secret (name, key)
VALUES (@name, @key)
ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING key;

-- name: WorkersSeen :exec
-- Records which workers have asked for work, and for which work.
INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, since, seen_at)
SELECT
    seen.tenant_id, seen.worker_id, seen.queue, ARRAY(SELECT DISTINCT d.id FROM jsonb_array_elements_text(seen.definitions::jsonb) AS d (id) ORDER BY d.id),
    now() - seen.ago, now() - seen.ago
FROM (
    SELECT
        unnest(@tenant_ids::text[]) AS tenant_id,
        unnest(@worker_ids::text[]) AS worker_id,
        unnest(@queues::text[]) AS queue,
        unnest(@definitions::text[]) AS definitions,
        unnest(@agos::bigint[]) * interval '1 microsecond' AS ago
) seen
ORDER BY seen.tenant_id COLLATE "C", seen.worker_id COLLATE "C", seen.queue COLLATE "C"
ON CONFLICT (tenant_id, worker_id, queue) DO UPDATE
SET definition_ids = excluded.definition_ids, seen_at = excluded.seen_at
WHERE worker.seen_at < excluded.seen_at;

-- name: WorkersBeat :exec
-- Records which workers have sent heartbeats: a busy worker does not ask for work.
UPDATE worker w
SET seen_at = now()
FROM (
    SELECT o.tenant_id, o.worker_id, o.queue
    FROM (SELECT unnest(@tenant_ids::text[]) AS tenant_id, unnest(@worker_ids::text[]) AS worker_id) beat
    JOIN worker o ON o.tenant_id = beat.tenant_id AND o.worker_id = beat.worker_id
    ORDER BY o.tenant_id, o.worker_id, o.queue
    FOR UPDATE OF o SKIP LOCKED
) held
WHERE w.tenant_id = held.tenant_id AND w.worker_id = held.worker_id AND w.queue = held.queue;

-- name: WorkersForget :execrows
-- A page of the workers that have not asked for an hour.
DELETE FROM worker w
WHERE (w.tenant_id, w.worker_id, w.queue) IN (
    SELECT o.tenant_id, o.worker_id, o.queue
    FROM worker o
    WHERE o.seen_at < now() - interval '1 hour'
    ORDER BY o.seen_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
);

-- name: WorkerList :many
-- A page of a tenant's workers.
SELECT w.worker_id, w.queue, w.definition_ids, w.since, w.seen_at, now()::timestamptz AS read_at
FROM worker w
WHERE w.tenant_id = @tenant_id AND (w.worker_id, w.queue) > (@after_worker::text, @after_queue::text)
ORDER BY w.worker_id, w.queue
LIMIT @page;
