-- A history is a legal path.
SELECT e.task_id::text AS task, format('event %s, %s: from %s to %s, after %s', e.seq, e.type, e.was, e.now, e.before) AS detail
FROM (SELECT v.*, lag(v.now) OVER (PARTITION BY v.task_id ORDER BY v.seq) AS before FROM task_event v) e
WHERE e.was IS DISTINCT FROM e.before
    OR (e.seq = 1 AND (e.type, e.now) <> ('created', 'PENDING'))
    OR (e.seq > 1 AND NOT EXISTS (SELECT FROM task_move m WHERE m.was = e.was AND m.now = e.now));
