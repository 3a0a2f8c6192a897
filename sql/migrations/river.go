package migrations

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// riverVersions is the number of versions of River's schema. If a new River has another
// version, add a step with the next free number of tes; until the step is applied, CheckRiver
// fails at the start.
const riverVersions = 8

// riverSteps makes each version of River's schema a separate migration. The versions cannot
// share a transaction, because an enum value cannot be used in the transaction that adds the
// value.
func riverSteps(pool *pgxpool.Pool) []*goose.Migration {
	steps := make([]*goose.Migration, 0, riverVersions)
	for version := 1; version <= riverVersions; version++ {
		// RunDB and not RunTx: River manages its own transactions, on a pool of pgx.
		up := &goose.GoFunc{RunDB: func(ctx context.Context, _ *sql.DB) error {
			return river(ctx, pool, rivermigrate.DirectionUp, version)
		}}

		down := &goose.GoFunc{RunDB: func(ctx context.Context, _ *sql.DB) error {
			target := version - 1
			if target == 0 {
				target = -1 // River's value for "revert everything"
			}
			return river(ctx, pool, rivermigrate.DirectionDown, target)
		}}

		steps = append(steps, goose.NewGoMigration(int64(version), up, down))
	}

	return steps
}

func river(ctx context.Context, pool *pgxpool.Pool, direction rivermigrate.Direction, target int) error {
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return fmt.Errorf("river migrator: %w", err)
	}

	if _, err := migrator.Migrate(ctx, direction, &rivermigrate.MigrateOpts{TargetVersion: target}); err != nil {
		return fmt.Errorf("river %s to %d: %w", direction, target, err)
	}

	return nil
}

// CheckRiver checks that River's tables have the version of this program.
func CheckRiver(ctx context.Context, pool *pgxpool.Pool) error {
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return fmt.Errorf("river migrator: %w", err)
	}

	result, err := migrator.Validate(ctx, &rivermigrate.ValidateOpts{})
	if err != nil {
		return fmt.Errorf("check river's schema: %w", err)
	}

	if !result.OK {
		return fmt.Errorf("river's tables are not at this program's version: %v (run: tes migrate up)", result.Messages)
	}

	return nil
}
