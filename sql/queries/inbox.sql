-- name: InboxSeen :one
SELECT EXISTS (SELECT FROM inbox WHERE event_id = @event_id)::boolean AS seen;

-- name: InboxPut :exec
INSERT INTO inbox (event_id, subject, outcome, detail)
VALUES (@event_id, @subject, @outcome, @detail)
ON CONFLICT (event_id) DO NOTHING;
