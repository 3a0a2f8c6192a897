-- name: InboxSeen :many
SELECT i.event_id FROM inbox i WHERE i.event_id = ANY (@event_ids::text[]);

-- name: InboxPut :exec
-- Notes what became of messages, many at a time, and counts them. A message whose
-- event was noted before, or is noted twice in one batch, is a repetition; a dead
-- letter that was noted before has been counted. Of two deliveries that are acted upon
-- side by side one finds it done, and may be the first to say so: then the other, who did
-- it, has the last word.
WITH heard AS (
    SELECT
        unnest(@event_ids::text[]) AS event_id,
        unnest(@subjects::text[]) AS subject,
        unnest(@outcomes::text[]) AS outcome,
        unnest(@details::text[]) AS detail
),
noted AS (
    INSERT INTO inbox (event_id, subject, outcome, detail)
    SELECT DISTINCT ON (heard.event_id) heard.event_id, heard.subject, heard.outcome, nullif(heard.detail, '')
    FROM heard
    ORDER BY heard.event_id, heard.outcome = 'repeated'
    ON CONFLICT (event_id) DO UPDATE
    SET outcome = excluded.outcome, detail = excluded.detail
    WHERE inbox.outcome = 'repeated' AND excluded.outcome NOT IN ('repeated', 'dead')
    RETURNING event_id, subject, outcome
)
INSERT INTO inbound (subject, acted, ignored, repeated, dead)
SELECT
    heard.subject,
    count(DISTINCT noted.event_id) FILTER (WHERE noted.outcome NOT IN ('repeated', 'dead') AND noted.outcome <> ALL (@changed_nothing::text[])),
    count(DISTINCT noted.event_id) FILTER (WHERE noted.outcome = ANY (@changed_nothing::text[])),
    -- The others: all but one of each that is no repetition as a whole.
    count(*) FILTER (WHERE heard.outcome <> 'dead') - count(DISTINCT noted.event_id) FILTER (WHERE noted.outcome NOT IN ('repeated', 'dead')),
    count(DISTINCT noted.event_id) FILTER (WHERE noted.outcome = 'dead')
FROM heard
LEFT JOIN noted ON noted.event_id = heard.event_id AND noted.subject = heard.subject
GROUP BY heard.subject
ORDER BY heard.subject
ON CONFLICT (subject) DO UPDATE
SET
    acted = inbound.acted + excluded.acted,
    ignored = inbound.ignored + excluded.ignored,
    repeated = inbound.repeated + excluded.repeated,
    dead = inbound.dead + excluded.dead;

-- name: InboundRead :many
SELECT i.subject, i.acted, i.ignored, i.repeated, i.dead
FROM inbound i
ORDER BY i.subject;
