-- The pending part of a callback ends at the task's last update, and begins after the
-- abandoned part.
SELECT
    c.task_id::text AS task,
    format('told up to %s, waiting up to %s; the last update is %s, the last given up %s', c.told, c.upto, e.seq, g.seq) AS detail
FROM callback c
LEFT JOIN task t ON t.task_id = c.task_id
LEFT JOIN (
    SELECT v.task_id, max(v.seq) AS seq FROM task_event v WHERE callback_tells(v.type) GROUP BY v.task_id
) e ON e.task_id = c.task_id
LEFT JOIN (SELECT b.task_id, max(b.seq) AS seq FROM callback_given_up b GROUP BY b.task_id) g ON g.task_id = c.task_id
WHERE t.callback_url IS NULL OR c.upto IS DISTINCT FROM e.seq OR g.seq > c.told;
