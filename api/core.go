package api

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
)

// core is shared by the handlers of all operations.
type core struct {
	tasks *jobs.Tasks // makes the transitions
	reads Reads       // for core.read alone
}

// read runs a handler's queries in one snapshot, under row-level security with the caller's tenant:
// a statement without a tenant condition returns no rows of other tenants. Errors of do are
// returned unchanged.
//
// Only readiness and metrics read over all tenants, through fields named across: TestReadsAreATenants
// has the list.
func (c *core) read(ctx context.Context, do func(*db.Queries) error) error {
	return pgpool.ReadAs(ctx, c.reads, callerOf(ctx).Tenant, func(tx pgx.Tx) error { return do(db.New(tx)) })
}

// fetch is read for a single statement, such as (*db.Queries).TaskGet.
func fetch[P, T any](ctx context.Context, c *core, statement func(*db.Queries, context.Context, P) (T, error), p P) (out T, err error) {
	err = c.read(ctx, func(q *db.Queries) (err error) {
		out, err = statement(q, ctx, p)
		return err
	})
	return out, err
}
