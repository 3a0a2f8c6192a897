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

// database is one copy of the template. It belongs to one test, or to the server's
// idle list.
type database struct {
	server *server
	name   string
	keeper *pgx.Conn // the session that resets it; nil until it is needed
	kept   bool      // its test failed: somebody may want to look

	farewell time.Duration // see the constant; shorter for those who test it
}

func (d *database) open(ctx context.Context, t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgpool.Open(ctx, d.server.dsn(d.name), pgpool.Config{
		Name: "test", MaxConns: maxConns, Engine: true, StatementTimeout: 30 * time.Second,
		LockTimeout: 10 * time.Second, // a test that holds a lock decides who waits
	})
	if err != nil {
		t.Fatalf("dbtest: open %s: %v", d.name, err)
	}
	return pool
}

// close closes the pool and waits until no session of the test is left. It returns
// false if the database must not be used again.
func (d *database) close(t testing.TB, pool *pgxpool.Pool) bool {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		pool.Close() // waits for every connection that was acquired
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
		if err := d.terminate(ctx); err != nil {
			t.Errorf("dbtest: %v", err)
		}
	}
	return !t.Failed()
}

// sessions returns those that are still there after a while: a backend ends a
// moment after its client has said good-bye.
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

// keep sets the database of a failed test aside. In a private cluster it is gone
// with the cluster all the same.
func (s *server) keep(t testing.TB, d *database) {
	if s.cluster == nil {
		d.kept = true
		t.Logf("dbtest: the database of this failed test is kept: %s", d.name)
	}
}

// giveBack resets the database and puts it on the idle list. One that cannot be
// reset is no reason to fail the test: nobody gets it again, that is all.
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
