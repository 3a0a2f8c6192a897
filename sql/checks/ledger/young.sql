-- Events that consumers may not have received yet: unpublished, or published within the grace.
SELECT o.lo, o.hi FROM outbox o
UNION ALL
SELECT p.lo, p.hi FROM outbox_published p WHERE p.published_at > now() - :'grace'::interval
ORDER BY lo;
