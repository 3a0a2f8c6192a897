-- name: CallbackClaim :many
-- Takes tasks that are due, at most some of each host, and reads the next updates of
-- each. @hosts and @rooms say how many for the hosts that are not free to take
-- @per_host. The hosts come in no order, so that none is always the last; they are
-- found by skipping along the index, however many rows each has.
--
-- Everything that is read here is immutable once written, so that a repetition is
-- equal to the byte.
WITH RECURSIVE host AS (
    (SELECT c.host FROM callback c ORDER BY c.host LIMIT 1)
    UNION ALL
    SELECT (SELECT c.host FROM callback c WHERE c.host > h.host ORDER BY c.host LIMIT 1)
    FROM host h
    WHERE h.host IS NOT NULL
),
due AS MATERIALIZED (
    SELECT d.task_id
    FROM (SELECT host.host FROM host WHERE host.host IS NOT NULL ORDER BY random()) h
    LEFT JOIN (
        SELECT unnest(@hosts::text[]) AS host, unnest(@rooms::integer[]) AS room
    ) known ON known.host = h.host
    CROSS JOIN LATERAL (
        SELECT c.task_id
        FROM callback c
        WHERE c.host = h.host AND c.due_at <= now()
        ORDER BY c.due_at
        LIMIT coalesce(known.room, @per_host::integer)
        FOR UPDATE SKIP LOCKED
    ) d
    LIMIT @places
),
claimed AS (
    UPDATE callback c
    SET claim = c.claim + 1, due_at = now() + make_interval(secs => @lease_seconds)
    FROM due
    WHERE c.task_id = due.task_id
    RETURNING c.task_id, c.host, c.claim, c.told, c.upto, c.tries
)
SELECT
    claimed.task_id, claimed.host, claimed.claim, claimed.told, claimed.tries, e.seq, e.at, e.now,
    t.callback_url, t.workflow_id, t.step_id, t.correlation_id,
    (CASE WHEN e.type = 'completed' THEN t.output END)::jsonb AS output,
    a.error
FROM claimed
CROSS JOIN LATERAL (
    SELECT k.callback_url, k.workflow_id, k.step_id, k.correlation_id, k.output
    FROM task k
    WHERE k.task_id = claimed.task_id
    LIMIT 1
) t
CROSS JOIN LATERAL (
    SELECT v.seq, v.at, v.attempt, v.type, v.now
    FROM task_event v
    WHERE v.task_id = claimed.task_id AND v.seq > claimed.told AND v.seq <= claimed.upto
        AND callback_tells(v.type)
    ORDER BY v.seq
    LIMIT @updates
) e
LEFT JOIN task_attempt a ON a.task_id = claimed.task_id AND a.attempt = e.attempt AND e.type IN ('retry', 'failed')
ORDER BY claimed.task_id, e.seq;

-- name: CallbackSettle :exec
-- What became of tasks that were claimed: they have been told up to @tolds, the last
-- of which was given up where @given_ups says so. What is left is due after @waits. A
-- claim that is over changes nothing: within a row the claims differ, and a row that
-- came after it begins with more told. Locks are taken in the order in which moves do.
WITH result AS (
    SELECT
        unnest(@task_ids::uuid[]) AS task_id,
        unnest(@claims::integer[]) AS claim,
        unnest(@from_tolds::integer[]) AS from_told,
        unnest(@tolds::integer[]) AS told,
        unnest(@tries::integer[]) AS tries,
        unnest(@given_ups::boolean[]) AS given_up,
        unnest(@waits::float8[]) AS wait_seconds,
        unnest(@problems::text[]) AS problem
),
held AS MATERIALIZED (
    SELECT result.*, c.upto, c.host, result.told >= c.upto AS done
    FROM result
    JOIN callback c ON c.task_id = result.task_id AND c.claim = result.claim AND c.told = result.from_told
    ORDER BY c.task_id
    FOR UPDATE OF c
),
given_up AS (
    INSERT INTO callback_given_up (task_id, seq, tries, host, problem)
    SELECT held.task_id, held.told, held.tries, held.host, held.problem
    FROM held
    WHERE held.given_up
    ON CONFLICT DO NOTHING
),
ended AS (
    DELETE FROM callback c
    USING held
    WHERE c.task_id = held.task_id AND held.done
)
UPDATE callback c
SET
    tries = CASE WHEN held.given_up THEN 0 ELSE held.tries END,
    problem = CASE
        WHEN held.given_up THEN NULL
        ELSE coalesce(nullif(held.problem, ''), CASE WHEN held.told = c.told THEN c.problem END)
    END,
    due_at = now() + make_interval(secs => held.wait_seconds),
    since = coalesce((
        SELECT v.at
        FROM task_event v
        WHERE v.task_id = c.task_id AND v.seq > held.told AND callback_tells(v.type)
        ORDER BY v.seq
        LIMIT 1
    ), c.since),
    told = held.told
FROM held
WHERE c.task_id = held.task_id AND NOT held.done;

-- name: CallbackExpire :execrows
-- Gives up what a host that does not answer has not taken for so long, some tasks at a
-- time.
WITH old AS MATERIALIZED (
    SELECT c.task_id, c.told, c.upto, c.tries, c.host
    FROM callback c
    WHERE c.since < @before AND c.host = @host AND c.due_at <= now()
    ORDER BY c.since
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
),
given_up AS (
    INSERT INTO callback_given_up (task_id, seq, tries, host, problem)
    SELECT old.task_id, e.seq, old.tries, old.host, @problem
    FROM old
    CROSS JOIN LATERAL (
        SELECT v.seq
        FROM task_event v
        WHERE v.task_id = old.task_id AND v.seq > old.told AND v.seq <= old.upto AND v.at < @before
            AND callback_tells(v.type)
        ORDER BY v.seq
        LIMIT 1000
    ) e
    ON CONFLICT DO NOTHING
    RETURNING task_id, seq
),
last AS (
    SELECT old.task_id, old.upto, max(given_up.seq)::integer AS seq
    FROM old
    JOIN given_up ON given_up.task_id = old.task_id
    GROUP BY old.task_id, old.upto
),
ended AS (
    DELETE FROM callback c
    USING last
    WHERE c.task_id = last.task_id AND last.seq >= last.upto
),
kept AS (
    UPDATE callback c
    SET
        told = last.seq,
        tries = 0,
        problem = NULL,
        since = coalesce((
            SELECT v.at
            FROM task_event v
            WHERE v.task_id = c.task_id AND v.seq > last.seq AND callback_tells(v.type)
            ORDER BY v.seq
            LIMIT 1
        ), c.since)
    FROM last
    WHERE c.task_id = last.task_id AND last.seq < last.upto
)
SELECT given_up.seq FROM given_up;

-- name: CallbackBacklog :one
SELECT
    w.waiting::bigint AS waiting, -- tasks
    coalesce((extract(epoch FROM now() - w.oldest) * 1000)::bigint, 0)::bigint AS oldest_ms,
    g.given_up::bigint AS given_up -- updates
FROM (SELECT count(*) AS waiting, min(c.since) AS oldest FROM (SELECT b.since FROM callback b ORDER BY b.since LIMIT 10000) c) w
CROSS JOIN (SELECT count(*) AS given_up FROM (SELECT FROM callback_given_up b LIMIT 10000) c) g;
