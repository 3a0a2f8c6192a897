-- No lease has been expired for longer than the grace.
-- (at work)

-- Every process looks for expired leases each second, and ends their attempts.
SELECT l.task_id::text AS task, format('%s''s lease ended at %s', l.owner, l.expires_at) AS detail
FROM lease l
WHERE l.expires_at < now() - :'grace'::interval;
