-- The bus has no event that this database does not know: the database was not restored to an earlier time.
SELECT '' AS task, format('event %s, at %s of the stream, found at %s', u.event_id, u.stream_seq, u.found_at) AS detail
FROM event_unknown u
WHERE u.seen_at IS NULL;
