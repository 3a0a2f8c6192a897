package pgpool

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Beginner begins transactions: a *pgxpool.Pool or a *Pooled.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// ReadAs calls read in a transaction on behalf of one tenant; "" is a caller without a
// tenant. The transaction is one snapshot, read-only, and has the role tes_read, whose row
// policies show only that tenant's rows, whatever the WHERE of a statement. The login must
// be a superuser or a member of tes_app.
//
// Role and tenant are local to the transaction and set in the first round trip, so ReadAs
// works through a pooler in transaction mode. An error of read is returned unchanged.
func ReadAs(ctx context.Context, pool Beginner, tenant string, read func(pgx.Tx) error) error {
	if strings.ContainsRune(tenant, 0) {
		return errors.New("read as a tenant: its name holds a NUL")
	}

	const begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL ROLE tes_read; SET LOCAL tes.tenant = "

	// The equals sign distinguishes the tenant "" from a missing setting.
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

// literal quotes text as an SQL literal. The form E” gives a backslash the same meaning
// under both values of standard_conforming_strings.
func literal(text string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(text) + "'"
}
