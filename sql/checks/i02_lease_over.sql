-- No lease has been over for longer than the grace.
-- (at work)

-- Every process looks for such leases each second, and ends or sweeps them.
SELECT l.task_id::text AS task, format('%s''s lease ended at %s', l.owner, l.expires_at) AS detail
FROM lease l
WHERE l.expires_at < now() - :'grace'::interval;
