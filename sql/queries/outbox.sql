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
-- they are committed. As every write of a leader it names the term, and under another
-- one it does, and shows, nothing.
WITH done AS (
    SELECT unnest(@told::bigint[]) AS id, unnest(@last_seqs::bigint[]) AS last_seq
),
told AS (
    DELETE FROM outbox o
    USING done
    WHERE o.id = done.id AND EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
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
    AND EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
ORDER BY o.id
LIMIT @flushes;

-- name: OutboxPark :exec
INSERT INTO outbox_parked (event_id, task_id, reason)
SELECT @event_id, @task_id, @reason
WHERE EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
ON CONFLICT (event_id) DO NOTHING;

-- name: OutboxParkedIDs :many
SELECT p.event_id FROM outbox_parked p WHERE p.event_id >= @lo AND p.event_id < @hi;

-- name: OutboxRequeue :one
-- The stream has lost what it acknowledged after a sequence: a page of it goes back into
-- the outbox, oldest first and whole rounds. Call it again with the last_seq that it
-- returned, until it returns no flushes. What is left of a run that was cut short is found
-- by the same look at the stream that found the loss.
WITH page AS (
    SELECT p.id
    FROM outbox_published p
    WHERE p.last_seq > @after_seq AND EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
    ORDER BY p.last_seq
    FETCH FIRST (@page::integer) ROWS WITH TIES
),
lost AS (
    DELETE FROM outbox_published p
    USING page
    WHERE p.id = page.id
    RETURNING p.id, p.lo, p.hi, p.last_seq
),
back AS (
    INSERT INTO outbox (id, lo, hi)
    OVERRIDING SYSTEM VALUE
    SELECT lost.id, lost.lo, lost.hi
    FROM lost
    ON CONFLICT (id) DO NOTHING
)
SELECT count(*)::bigint AS flushes, coalesce(max(lost.last_seq), 0)::bigint AS last_seq
FROM lost;

-- name: OutboxRequeueRound :execrows
-- One round is not where the stream said it was: tell it again.
WITH lost AS (
    DELETE FROM outbox_published p
    WHERE p.last_seq = @last_seq AND EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
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

-- name: OutboxForget :one
-- A page of the oldest publications, after an id: what is older than so many hours goes.
-- The id spares a sweep of many pages the look at what the pages before have removed.
WITH page AS (
    SELECT o.id, o.published_at
    FROM outbox_published o
    WHERE o.id > @after AND EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
    ORDER BY o.id
    LIMIT @page
),
gone AS (
    DELETE FROM outbox_published p
    USING page
    WHERE p.id = page.id AND page.published_at < now() - make_interval(hours => @hours::integer)
    RETURNING p.id
)
SELECT
    (SELECT count(*) FROM gone)::bigint AS forgotten,
    (SELECT coalesce(max(page.id), 0) FROM page)::bigint AS last_id;

-- name: OutboxStream :one
SELECT s.stream_created_at FROM outbox_stream s;

-- name: OutboxStreamPut :exec
INSERT INTO outbox_stream (stream_created_at)
SELECT @stream_created_at
WHERE EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
ON CONFLICT (only_one) DO UPDATE SET stream_created_at = excluded.stream_created_at;

-- name: OutboxBacklog :one
SELECT
    count(*)::bigint AS flushes,
    coalesce(sum(b.hi - b.lo), 0)::bigint AS events, -- an upper bound: ranges have holes
    coalesce((extract(epoch FROM now() - min(b.created_at)) * 1000)::bigint, 0)::bigint AS oldest_ms
FROM (SELECT o.lo, o.hi, o.created_at FROM outbox o ORDER BY o.id LIMIT 10000) b;

-- name: RelayTake :one
-- Takes the lead where nobody leads: the leader has given it back, its session is gone,
-- or its heartbeat has been silent for too long. The caller's session becomes the
-- leader's. No row is returned where another process leads, or where another session
-- has the row locked: then nobody can take the lead, and nobody can lose it.
--
-- A session that another role has opened shows no backend_start, and counts as alive.
WITH free AS (
    SELECT l.only_one, l.holder, l.backend_pid, l.backend_start, l.heartbeat_at
    FROM relay_leader l
    WHERE l.holder = ''
        OR l.heartbeat_at < now() - make_interval(secs => @silence_seconds::float8)
        OR NOT EXISTS (
            SELECT FROM pg_catalog.pg_stat_activity a
            WHERE a.pid = l.backend_pid AND (a.backend_start IS NULL OR a.backend_start = l.backend_start)
        )
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE relay_leader l
SET
    term = l.term + 1,
    holder = @holder,
    backend_pid = pg_backend_pid(),
    backend_start = (SELECT a.backend_start FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_backend_pid()),
    heartbeat_at = now()
FROM free
WHERE l.only_one = free.only_one
RETURNING
    l.term, free.holder AS ousted, free.backend_pid AS ousted_pid, free.backend_start AS ousted_start,
    coalesce(extract(epoch FROM now() - nullif(free.heartbeat_at, '-infinity')), 0)::float8 AS silent_seconds;

-- name: RelayOust :one
-- Ends the session of a leader that was silent, and waits for up to two seconds until it
-- is gone: what the session had begun to write is written, or never will be.
SELECT coalesce(bool_and(pg_terminate_backend(a.pid, 2000)), true)::boolean AS gone
FROM pg_catalog.pg_stat_activity a
WHERE a.pid = @pid::integer AND a.backend_start = @started_at::timestamptz AND a.pid <> pg_backend_pid();

-- name: RelayBeat :one
-- The heartbeat of a leader. It waits for nobody who has the row locked: beaten is false
-- then, and the lead is kept, for nobody else can take it either.
WITH mine AS (
    SELECT l.only_one
    FROM relay_leader l
    WHERE l.term = @term AND l.holder <> ''
    FOR NO KEY UPDATE SKIP LOCKED
),
beat AS (
    UPDATE relay_leader l
    SET heartbeat_at = now()
    FROM mine
    WHERE l.only_one = mine.only_one
    RETURNING l.term
)
SELECT (l.term = @term AND l.holder <> '')::boolean AS leads, EXISTS (SELECT FROM beat)::boolean AS beaten
FROM relay_leader l;

-- name: RelayYield :exec
-- Gives the lead back before the session ends, which the server notices later.
UPDATE relay_leader l
SET holder = ''
WHERE l.term = @term
    AND l.only_one IN (SELECT o.only_one FROM relay_leader o WHERE o.term = @term FOR NO KEY UPDATE SKIP LOCKED);

-- name: RelayLeader :one
-- Who leads, and for how long its heartbeat has been silent.
SELECT
    l.holder, l.term,
    coalesce(extract(epoch FROM now() - nullif(l.heartbeat_at, '-infinity')), 0)::float8 AS silent_seconds
FROM relay_leader l;

-- name: RelayName :exec
-- The leader's session says what it is.
SELECT set_config('application_name', 'tes relay', false);

-- name: RelayKey :one
-- The key of the programs from before the table relay_leader: they publish while they
-- hold this advisory lock, in a session of their engine's pool. A leader by the row takes
-- the key too, so that they stand by. Anybody who may connect can take an advisory lock:
-- only such a session counts, and only of our own login role or one that is tes_app.
-- Whoever else has the key is passed over.
SELECT
    pg_try_advisory_lock(hashtextextended('tes relay', 0))::boolean AS held,
    EXISTS (
        SELECT FROM pg_catalog.pg_locks k
        JOIN pg_catalog.pg_database d ON d.oid = k.database
        JOIN pg_catalog.pg_stat_activity a ON a.pid = k.pid
        WHERE k.locktype = 'advisory'
            AND d.datname = current_database()
            AND ((k.classid::bigint << 32) | k.objid::bigint) = hashtextextended('tes relay', 0)
            AND k.objsubid = 1
            AND k.granted
            AND a.application_name = 'tes engine'
            AND (a.usename = session_user OR pg_has_role(a.usesysid, 'tes_app', 'MEMBER'))
    )::boolean AS older_leads;

-- name: OutboxEventKeys :many
-- The events of a page of what waits, oldest first, after a flush: by what their ids are
-- made of.
SELECT o.id, e.task_id, e.seq
FROM (SELECT b.id, b.lo, b.hi FROM outbox b WHERE b.id > @after ORDER BY b.id LIMIT @page) o
CROSS JOIN LATERAL (
    SELECT v.task_id, v.seq
    FROM task_event v
    WHERE v.id >= o.lo AND v.id < o.hi
    ORDER BY v.id
    LIMIT 20000
) e
ORDER BY o.id;

-- name: EventUnknownAdd :execrows
-- What the stream has and this database does not.
INSERT INTO event_unknown (event_id, stream_seq)
SELECT unnest(@event_ids::uuid[]), unnest(@stream_seqs::bigint[])
WHERE EXISTS (SELECT FROM relay_leader l WHERE l.term = @term)
ON CONFLICT (event_id) DO NOTHING;

-- name: EventUnknownList :many
SELECT u.event_id FROM event_unknown u;

-- name: EventUnknownCount :one
-- Those that no operator has dealt with.
SELECT count(*)::bigint AS n FROM event_unknown u WHERE u.seen_at IS NULL;
