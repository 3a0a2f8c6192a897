-- name: CallBegin :execrows
-- Reserves a new call key for this request. No row: the key is taken.
INSERT INTO call_answer (tenant_id, caller, operation, call_key, turn, until, body_hash)
VALUES (
    @tenant_id, @caller, @operation, @call_key, @turn, now() + make_interval(secs => @seconds::float8), @body_hash
)
ON CONFLICT (tenant_id, caller, operation, call_key) DO NOTHING;

-- name: CallGet :one
-- The stored answer (answered is false while the call is under way), and the seconds for
-- which the key stays reserved. Waits for no lock.
SELECT
    c.turn, c.body_hash, (c.status IS NOT NULL)::boolean AS answered, coalesce(c.status, 0)::integer AS status, c.headers, c.body,
    extract(epoch FROM c.until - now())::float8 AS seconds_left
FROM call_answer c
WHERE c.tenant_id = @tenant_id AND c.caller = @caller AND c.operation = @operation AND c.call_key = @call_key;

-- name: CallTakeOver :execrows
-- Reserves the key of a call that did not end in time.
UPDATE call_answer c
SET turn = @turn, until = now() + make_interval(secs => @seconds::float8)
WHERE c.tenant_id = @tenant_id AND c.caller = @caller AND c.operation = @operation AND c.call_key = @call_key
    AND c.turn = @old_turn AND c.status IS NULL AND c.until <= now();

-- name: CallHold :many
-- Which of these requests still hold the reservation, locked until the end of the
-- transaction. Locked before any task, so that lock orders agree.
SELECT c.turn
FROM (
    SELECT
        unnest(@tenant_ids::text[]) AS tenant_id,
        unnest(@callers::text[]) AS caller,
        unnest(@operations::text[]) AS operation,
        unnest(@call_keys::text[]) AS call_key,
        unnest(@turns::bigint[]) AS turn
) mine
JOIN call_answer c
    ON c.tenant_id = mine.tenant_id AND c.caller = mine.caller AND c.operation = mine.operation AND c.call_key = mine.call_key
    AND c.turn = mine.turn AND c.status IS NULL
ORDER BY c.tenant_id, c.caller, c.operation, c.call_key
FOR UPDATE OF c;

-- name: CallSettle :execrows
-- Stores the answer of a call that still holds the reservation.
UPDATE call_answer c
SET status = @status::integer, headers = @headers, body = @body, at = now()
WHERE c.tenant_id = @tenant_id AND c.caller = @caller AND c.operation = @operation AND c.call_key = @call_key
    AND c.turn = @turn AND c.status IS NULL;

-- name: CallRelease :exec
-- Deletes a call without effects, so that its key can be used again.
DELETE FROM call_answer c
WHERE c.tenant_id = @tenant_id AND c.caller = @caller AND c.operation = @operation AND c.call_key = @call_key
    AND c.turn = @turn AND c.status IS NULL;

-- name: CallForget :execrows
-- Deletes a page of expired answers.
WITH old AS MATERIALIZED (
    SELECT o.tenant_id, o.caller, o.operation, o.call_key
    FROM call_answer o
    WHERE o.at < now() - make_interval(secs => @kept_seconds::float8)
    ORDER BY o.at
    LIMIT @page::integer
    FOR UPDATE SKIP LOCKED
)
DELETE FROM call_answer c
USING old
WHERE c.tenant_id = old.tenant_id AND c.caller = old.caller AND c.operation = old.operation AND c.call_key = old.call_key;
