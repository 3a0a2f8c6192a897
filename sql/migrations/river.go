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

// riverVersions is how many versions River's schema has. When River is upgraded
// and brings another one, it becomes a new step with the next free number of
// ours; CheckRiver refuses to start until then.
const riverVersions = 8

// riverSteps makes each of River's versions a migration of its own: they must
// not share a transaction, for one adds enum values that the next one uses.
func riverSteps(pool *pgxpool.Pool) []*goose.Migration {
	steps := make([]*goose.Migration, 0, riverVersions)
	for version := 1; version <= riverVersions; version++ {
		up := &goose.GoFunc{RunDB: func(ctx context.Context, _ *sql.DB) error {
			return river(ctx, pool, rivermigrate.DirectionUp, version)
		}}
		down := &goose.GoFunc{RunDB: func(ctx context.Context, _ *sql.DB) error {
			target := version - 1
			if target == 0 {
				target = -1 // River's word for "take back everything"
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

// CheckRiver says whether River's tables are the ones this program was built for.
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
