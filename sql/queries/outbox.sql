-- name: OutboxEvents :many
-- The events of these ranges, in the ranges' order, with what their envelopes
-- need. Everything here is immutable once written, so that a redelivery is equal
-- to the byte.
--
-- Each LIMIT is a fence: left to itself the planner reads all of task, in any
-- order, and throws nearly all of it away. A range is never longer than a block.
SELECT
    e.id, e.task_id, e.seq, e.at, e.attempt, e.type, e.was, e.now, e.actor, e.payload,
    t.workflow_id, t.task_type, t.definition_id, t.priority, t.correlation_id, t.traceparent,
    a.executor_id, a.started_at, a.ended_at, a.error
FROM (SELECT unnest(@los::bigint[]) AS lo, unnest(@his::bigint[]) AS hi, unnest(@ids::bigint[]) AS id) r
CROSS JOIN LATERAL (
    SELECT v.id, v.task_id, v.seq, v.at, v.attempt, v.type, v.was, v.now, v.actor, v.payload
    FROM task_event v
    WHERE v.id >= r.lo AND v.id < r.hi
    ORDER BY v.id
    LIMIT 20000
) e
CROSS JOIN LATERAL (
    SELECT k.workflow_id, k.type AS task_type, k.definition_id, k.priority, k.correlation_id, k.traceparent
    FROM task k
    WHERE k.task_id = e.task_id
    LIMIT 1
) t
LEFT JOIN task_attempt a ON a.task_id = e.task_id AND a.attempt = e.attempt
ORDER BY r.id, e.id;

-- name: OutboxAdvance :many
-- Logs what was told and says what comes next, oldest first, but for what is
-- under way already. By row, not by "the last id seen": ids are handed out before
-- they are committed.
WITH done AS (
    SELECT unnest(@told::bigint[]) AS id, unnest(@last_seqs::bigint[]) AS last_seq
),
told AS (
    DELETE FROM outbox o
    USING done
    WHERE o.id = done.id
    RETURNING o.id, o.lo, o.hi
),
logged AS (
    INSERT INTO outbox_published (id, lo, hi, last_seq)
    SELECT told.id, told.lo, told.hi, done.last_seq
    FROM told
    JOIN done ON done.id = told.id
    ON CONFLICT (id) DO UPDATE SET last_seq = excluded.last_seq, published_at = now()
)
SELECT o.id, o.lo, o.hi
FROM outbox o
WHERE o.id <> ALL (@told::bigint[]) AND o.id <> ALL (@under_way::bigint[])
ORDER BY o.id
LIMIT @flushes;

-- name: OutboxPark :exec
INSERT INTO outbox_parked (event_id, task_id, reason)
VALUES (@event_id, @task_id, @reason)
ON CONFLICT (event_id) DO NOTHING;

-- name: OutboxParkedIDs :many
SELECT p.event_id FROM outbox_parked p WHERE p.event_id >= @lo AND p.event_id < @hi;

-- name: OutboxRequeue :execrows
-- The stream has lost everything after this sequence: tell it again.
WITH lost AS (
    DELETE FROM outbox_published p
    WHERE p.last_seq > @surviving_seq
    RETURNING p.id, p.lo, p.hi
)
INSERT INTO outbox (id, lo, hi)
OVERRIDING SYSTEM VALUE
SELECT lost.id, lost.lo, lost.hi
FROM lost
ON CONFLICT (id) DO NOTHING;

-- name: OutboxRequeueRound :execrows
-- One round is not where the stream said it was: tell it again.
WITH lost AS (
    DELETE FROM outbox_published p
    WHERE p.last_seq = @last_seq
    RETURNING p.id, p.lo, p.hi
)
INSERT INTO outbox (id, lo, hi)
OVERRIDING SYSTEM VALUE
SELECT lost.id, lost.lo, lost.hi
FROM lost
ON CONFLICT (id) DO NOTHING;

-- name: OutboxRounds :many
-- The newest published rounds that end at or after a sequence and before another,
-- newest first; each by its last flush, whose last event the stream must hold there.
SELECT DISTINCT ON (p.last_seq) p.id, p.lo, p.hi, p.last_seq
FROM outbox_published p
WHERE p.last_seq >= @first_seq AND p.last_seq < @end_seq
ORDER BY p.last_seq DESC, p.id DESC
LIMIT @rounds;

-- name: OutboxForget :execrows
-- From the oldest on, some at a time: nothing is looked at that may stay.
DELETE FROM outbox_published p
WHERE p.id IN (SELECT o.id FROM outbox_published o ORDER BY o.id LIMIT 10000)
    AND p.published_at < now() - make_interval(hours => @hours::integer);

-- name: OutboxStream :one
SELECT s.stream_created_at FROM outbox_stream s;

-- name: OutboxStreamPut :exec
INSERT INTO outbox_stream (stream_created_at)
VALUES (@stream_created_at)
ON CONFLICT (only_one) DO UPDATE SET stream_created_at = excluded.stream_created_at;

-- name: OutboxBacklog :one
SELECT
    count(*)::bigint AS flushes,
    coalesce(sum(b.hi - b.lo), 0)::bigint AS events, -- an upper bound: ranges have holes
    coalesce((extract(epoch FROM now() - min(b.created_at)) * 1000)::bigint, 0)::bigint AS oldest_ms
FROM (SELECT o.lo, o.hi, o.created_at FROM outbox o ORDER BY o.id LIMIT 10000) b;

-- name: RelayLead :one
-- One relay at a time, for as long as its session lives: events of one task stay
-- in order only under a single publisher.
SELECT pg_try_advisory_lock(hashtextextended('tes relay', 0))::boolean AS leads;

-- name: RelayYield :exec
-- Gives the lead back before the session ends, which the server notices later.
SELECT pg_advisory_unlock(hashtextextended('tes relay', 0));
