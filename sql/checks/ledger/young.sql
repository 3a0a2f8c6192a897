-- What consumers may not have heard yet: not published, or just now.
SELECT o.lo, o.hi FROM outbox o
UNION ALL
SELECT p.lo, p.hi FROM outbox_published p WHERE p.published_at > now() - :'grace'::interval
ORDER BY lo;
