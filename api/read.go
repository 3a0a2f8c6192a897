package api

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// read runs a handler's queries in one snapshot, under row-level security with the caller's tenant:
// a statement without a tenant condition returns no rows of other tenants. Errors of do are
// returned unchanged.
//
// Reads over all tenants (health, metrics) use API.across, and no others may: TestReadsAreATenants
// has the list.
func (a *API) read(ctx context.Context, do func(*db.Queries) error) error {
	return pgpool.ReadAs(ctx, a.cfg.Reads, callerOf(ctx).Tenant, func(tx pgx.Tx) error { return do(db.New(tx)) })
}

// fetch is read for a single statement, such as (*db.Queries).TaskGet.
func fetch[P, T any](ctx context.Context, a *API, statement func(*db.Queries, context.Context, P) (T, error), p P) (out T, err error) {
	err = a.read(ctx, func(q *db.Queries) (err error) {
		out, err = statement(q, ctx, p)
		return err
	})
	return out, err
}
