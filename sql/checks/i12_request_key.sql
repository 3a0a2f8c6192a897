-- A request key belongs to the one task that carries the key.
SELECT
    coalesce(t.task_id, r.task_id)::text AS task,
    format('the key %s of tenant %s; the task says %s of %s', quote_nullable(r.request_key), quote_nullable(r.tenant_id),
        quote_nullable(t.request_id), quote_nullable(t.tenant_id)) AS detail
FROM task_request r
FULL JOIN (SELECT k.task_id, k.tenant_id, k.request_id FROM task k WHERE k.request_id IS NOT NULL) t ON t.task_id = r.task_id
WHERE (r.tenant_id, r.request_key) IS DISTINCT FROM (t.tenant_id, t.request_id);
