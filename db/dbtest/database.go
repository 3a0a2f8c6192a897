package dbtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// database is one copy of the template. A database belongs to one test, or to the server's
// list of idle databases.
type database struct {
	server *server
	name   string
	keeper *pgx.Conn // the session that resets the database; nil until needed
	kept   bool      // the test failed: the database is kept for inspection

	farewell time.Duration // as the constant; shorter in dbtest's own tests
}

func (d *database) open(ctx context.Context, t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgpool.Open(ctx, d.server.dsn(d.name), pgpool.Config{
		Name: "test", MaxConns: maxConns, Engine: true, StatementTimeout: 30 * time.Second,
		// A test that holds a lock decides for itself who waits, and how long.
		LockTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatalf("dbtest: open %s: %v", d.name, err)
	}

	return pool
}

// close closes the pool, and waits until all sessions of the test have ended. The result is
// false if the database must not be used again.
func (d *database) close(t testing.TB, pool *pgxpool.Pool) bool {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		// Waits for all acquired connections.
		pool.Close()
		close(closed)
	}()

	select {
	case <-closed:
	case <-time.After(d.farewell):
		t.Errorf("dbtest: %d connections were acquired from the pool and not released", pool.Stat().AcquiredConns())
	}

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	left, err := d.sessions(ctx)
	if err != nil {
		t.Errorf("dbtest: look for sessions on %s: %v", d.name, err)
		return false
	}

	if len(left) > 0 {
		t.Errorf("dbtest: the test has ended and these sessions of it have not: %s", strings.Join(left, "; "))

		// Ended, so that the database can be dropped.
		if err := d.terminate(ctx); err != nil {
			t.Errorf("dbtest: %v", err)
		}
	}

	return !t.Failed()
}

// sessions returns the sessions that are left when farewell is over. A backend ends a moment
// after its client has closed the connection.
func (d *database) sessions(ctx context.Context) ([]string, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()

	for deadline := time.Now().Add(d.farewell); ; <-tick.C {
		rows, err := d.server.admin.Query(ctx, `
			SELECT format('%s %s %s: %s', pid, application_name, state, left(query, 80))
			FROM pg_stat_activity
			WHERE datname = $1
				AND pid <> $2
				AND backend_type = 'client backend'`, d.name, d.keeperPID())
		if err != nil {
			return nil, err
		}

		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(left) == 0 || time.Now().After(deadline) {
			return left, err
		}
	}
}

func (d *database) terminate(ctx context.Context) error {
	_, err := d.server.admin.Exec(ctx, `
		SELECT pg_terminate_backend(pid)
		FROM pg_stat_activity
		WHERE datname = $1
			AND pid <> $2`, d.name, d.keeperPID())
	if err != nil {
		return fmt.Errorf("terminate sessions on %s: %w", d.name, err)
	}

	return nil
}

func (d *database) keeperPID() uint32 {
	if d.keeper == nil {
		return 0
	}
	return d.keeper.PgConn().PID()
}

// keep excludes the database of a failed test from reuse and deletion. A private cluster is
// removed with all databases in any case.
func (s *server) keep(t testing.TB, d *database) {
	if s.cluster == nil {
		d.kept = true
		t.Logf("dbtest: the database of this failed test is kept: %s", d.name)
	}
}

// giveBack resets the database and makes it available to other tests. If the reset fails,
// the database is not used again, which does not fail the test.
func (s *server) giveBack(t testing.TB, d *database) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	if err := d.reset(ctx); err != nil {
		t.Logf("dbtest: %s is not used again: %v", d.name, err)
		return
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	s.idle = append(s.idle, d)
}
