package migrations_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// shape is everything that migrations make, as text.
const shape = `
	SELECT format('%s %s.%s %s %s %s', 'column', table_schema, table_name, column_name, udt_name, is_nullable)
	FROM information_schema.columns
	WHERE table_schema IN ('public', 'report') AND table_name NOT LIKE 'goose%'
	UNION ALL
	SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE 'goose%'
	UNION ALL
	SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
	WHERE connamespace = 'public'::regnamespace AND conrelid <> 0 AND conrelid <> coalesce(to_regclass('goose_db_version'), 0)
	UNION ALL
	SELECT format('%s %s', t.typname, e.enumlabel) FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
	UNION ALL
	SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
	UNION ALL
	SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'report'))
	ORDER BY 1`

func shapeOf(t *testing.T, dsn string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	return list[string](t, conn, shape)
}

func TestUpFromNothingTwiceAndBackAgain(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	ctx := t.Context()
	nothing := shapeOf(t, dsn)

	require.NoError(t, migrations.Up(ctx, dsn))
	whole := shapeOf(t, dsn)
	require.Greater(t, len(whole), 100)
	steps, err := migrations.Status(ctx, dsn)
	require.NoError(t, err)
	last := int64(0)
	for _, step := range steps {
		require.True(t, step.Applied, step.Name)
		require.Greater(t, step.Version, last, "no number is given twice")
		last = step.Version
	}
	require.NoError(t, migrations.Up(ctx, dsn), "there is nothing left to do")
	require.Equal(t, whole, shapeOf(t, dsn))

	for n := len(steps); n > 0; n-- {
		step, err := migrations.Down(ctx, dsn)
		require.NoError(t, err)
		require.NotNil(t, step)
		require.Equal(t, steps[n-1].Version, step.Version)
	}
	step, err := migrations.Down(ctx, dsn)
	require.NoError(t, err)
	require.Nil(t, step)
	require.Equal(t, nothing, shapeOf(t, dsn), "nothing is left behind")
	steps, err = migrations.Status(ctx, dsn)
	require.NoError(t, err)
	for _, step := range steps {
		require.False(t, step.Applied, step.Name)
	}

	require.NoError(t, migrations.Up(ctx, dsn))
	require.Equal(t, whole, shapeOf(t, dsn))
}

// Every process migrates when it starts, and all of them start at once.
func TestUpByManyAtOnce(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	for range 2 {
		var all errgroup.Group
		for range 4 {
			all.Go(func() error { return migrations.Up(t.Context(), dsn) })
		}
		require.NoError(t, all.Wait())
	}
	require.NotEmpty(t, shapeOf(t, dsn))
}

func TestUpOfADatabaseThatIsNotThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	conf := b.pool.Config().ConnConfig
	require.Error(t, migrations.Up(t.Context(), "host="+conf.Host+" dbname=nobody_made_it"))
}

func TestFingerprintIsStable(t *testing.T) {
	t.Parallel()
	require.Equal(t, migrations.Fingerprint(), migrations.Fingerprint())
	require.Len(t, migrations.Fingerprint(), 16)
}

// A migration that is interrupted says so, whichever step it was at, and the next run goes on
// from there. Another session holds the name of a type, so that the step that makes it waits.
func TestInterruptedMigrationSaysSo(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	holder, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer holder.Close(context.WithoutCancel(t.Context()))
	tx, err := holder.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "CREATE TYPE public.task_status AS ENUM ('x')")
	require.NoError(t, err)

	interrupted := errors.New("interrupt signal received")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- migrations.Up(ctx, dsn) }()
	watcher, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer watcher.Close(context.WithoutCancel(t.Context()))
	require.Eventually(t, func() bool {
		return list[int64](t, watcher, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%task_status%'")[0] > 0
	}, time.Minute, 5*time.Millisecond, "the step waits")
	cancel(interrupted)
	err = <-ended
	require.ErrorIs(t, err, interrupted)
	require.ErrorContains(t, err, "the migration was interrupted: what is applied stays")
	require.NotContains(t, err.Error(), "partial migration")

	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, migrations.Up(t.Context(), dsn), "the next run goes on")
}
