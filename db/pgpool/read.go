package pgpool

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Beginner is what a transaction is begun with: a *pgxpool.Pool, or a *Pooled.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// ReadAs reads on behalf of one tenant ("" is that of a caller without one), in one
// snapshot. The transaction is read only and belongs to the role tes_read, whose
// policies show it that tenant's rows and no other's, whatever a statement's WHERE says.
// The login must be a superuser or a member of tes_app.
//
// All of it is local to the transaction and begins in one round trip, so that it works
// through a pooler that hands out sessions by the transaction. What read returns comes
// back as it is.
func ReadAs(ctx context.Context, pool Beginner, tenant string, read func(pgx.Tx) error) error {
	if strings.ContainsRune(tenant, 0) {
		return errors.New("read as a tenant: its name holds a NUL")
	}
	const begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL ROLE tes_read; SET LOCAL tes.tenant = "
	// The equals sign tells the tenant "" from a setting that is not there.
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: begin + literal("="+tenant)})
	if err != nil {
		return fmt.Errorf("read as a tenant: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := read(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("read as a tenant: %w", err)
	}
	return nil
}

// literal quotes a text. In this form a backslash means the same whatever
// standard_conforming_strings says.
func literal(text string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(text) + "'"
}
