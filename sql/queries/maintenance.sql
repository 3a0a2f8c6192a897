-- name: MaintenanceSet :many
-- Puts queues into maintenance, or takes them out, unless a newer order exists. A prolonged
-- maintenance keeps its begin. Sessions that listen for the queues are notified.
WITH asked AS (
    SELECT unnest(@lanes::text[])::task_lane AS lane
),
changed AS (
    INSERT INTO maintenance (lane, since, until, reason, actor, said_at)
    SELECT
        asked.lane, @said_at::timestamptz,
        CASE WHEN @enabled::boolean THEN sqlc.narg(until)::timestamptz ELSE now() END,
        @reason, @actor, @said_at::timestamptz
    FROM asked
    ORDER BY asked.lane
    ON CONFLICT (lane) DO UPDATE
    SET
        since = CASE
            WHEN NOT @enabled::boolean OR maintenance.until IS NULL OR maintenance.until > now() THEN maintenance.since
            ELSE excluded.since
        END,
        until = CASE
            WHEN @enabled::boolean THEN excluded.until
            ELSE least(maintenance.until, excluded.until)
        END,
        reason = excluded.reason,
        actor = excluded.actor,
        said_at = excluded.said_at
    WHERE maintenance.said_at <= excluded.said_at
    RETURNING lane
),
kept AS (
    INSERT INTO maintenance_change (event_id, lane, at, enabled, until, reason, actor)
    SELECT @event_id, changed.lane, @said_at::timestamptz, @enabled::boolean, sqlc.narg(until)::timestamptz, @reason, @actor
    FROM changed
    ON CONFLICT (event_id, lane) DO NOTHING
)
SELECT changed.lane, pg_notify('tes_lane', changed.lane::text)::text AS told
FROM changed;

-- name: MaintenanceInForce :many
SELECT m.lane, m.since, m.until, m.reason, m.actor
FROM maintenance m
WHERE m.until IS NULL OR m.until > now()
ORDER BY m.lane;

-- name: ShutdownPut :exec
-- An order takes effect once: repetitions notify no process.
WITH given AS (
    INSERT INTO shutdown_order (event_id, said_at, target, grace_seconds, reason, actor)
    VALUES (@event_id, @said_at, @target, sqlc.narg(grace_seconds)::float8, @reason, @actor)
    ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id
)
SELECT pg_notify('tes_shutdown', given.event_id)
FROM given;

-- name: ShutdownOrders :many
-- The orders since a process has started.
SELECT s.event_id, s.said_at, s.target, s.grace_seconds, s.reason, s.actor
FROM shutdown_order s
JOIN executor x ON x.executor_id = @executor_id
WHERE s.said_at > x.started_at
ORDER BY s.said_at;

-- name: ExecutorsLive :many
SELECT x.executor_id
FROM executor x
WHERE x.seen_at > now() - make_interval(secs => @silence_seconds::float8);
