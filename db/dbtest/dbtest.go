// Package dbtest gives every test a migrated PostgreSQL database of its own.
//
//	func TestMain(m *testing.M) { dbtest.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		pool := dbtest.Get(t)
//		…
//	}
//
// The first test that asks for a database starts a private throw-away cluster (package
// localpg), or opens the server of TES_TEST_DATABASE_URL if the variable is set, and makes a
// template there: an empty database with all migrations. Each database of a test is a copy
// of the template.
//
// A copy takes 10 to 100 ms, so Get uses databases again: when a test has passed, its rows
// are deleted, which takes about 1 ms. A database is used again only if it then equals the
// template, and never after a failed test. Sequences are not reset, so tests must not
// expect certain ids.
//
// The package reads TES_TEST_DATABASE_URL from the environment, and for the private cluster
// TES_DATA_DIR (where downloads are kept), TES_PG_BIN, TES_PG_VERSION, TES_PG_SYSTEM,
// TES_PG_DOWNLOAD, TES_PG_MIRROR and TES_PG_USER, with the same meaning as for tes itself.
package dbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

const (
	// maxConns is the size of a test's pool: more connections than a test uses, so that no
	// test waits for itself.
	maxConns = 20
	// patience is the limit for steps that usually take milliseconds.
	patience = 30 * time.Second
	// farewell is the time for the sessions of a test to end after the test.
	farewell = 10 * time.Second
)

// suite is the state of this test binary.
var suite struct {
	inMain bool // set before any test runs

	once sync.Once // guards the start of srv; srv and err are read after once
	srv  *server
	err  error
}

// Main runs the tests of a package, removes the databases and the server, and exits. The
// checks run last, for example a search for leaked goroutines. A killed test binary leaves
// no server running: see localpg.
func Main(m *testing.M, checks ...func() error) {
	// pgx would add the variables to every connection string.
	localpg.ClearPGEnv()
	suite.inMain = true
	code := m.Run()

	// If no test has asked for a database, none may start a server now.
	suite.once.Do(func() { suite.err = errors.New("the tests are over") })
	if suite.srv != nil {
		if err := suite.srv.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "dbtest: %v\n", err)
			code = max(code, 1)
		}
	}

	for _, check := range checks {
		if err := check(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}

	os.Exit(code)
}

// Get returns a pool on an empty, migrated database that no other test uses until the
// calling test has ended. The pool is an engine's pool (pgpool.Config.Engine), which the
// trigger on the table task accepts; for other roles, open a pool with URL. Get closes the
// pool.
//
// Another test may have used the database before: tests that change the schema or look at
// sequences need New. Sessions that a test opens with URL must be closed when the test ends;
// sessions left over fail the test.
func Get(t testing.TB) *pgxpool.Pool {
	t.Helper()
	s := running(t)

	// Without a superuser, triggers cannot be switched off, and a reset is not possible.
	if !s.canReset {
		return New(t)
	}

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	d, err := s.take(ctx)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	pool := d.open(ctx, t)
	t.Cleanup(func() {
		if d.close(t, pool) {
			s.giveBack(t, d)
		} else {
			s.keep(t, d)
		}
	})

	return pool
}

// New returns a pool on a database that is made for this test, and used by no other test.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	s := running(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	d, err := s.create(ctx)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	pool := d.open(ctx, t)
	t.Cleanup(func() {
		if !d.close(t, pool) {
			s.keep(t, d)
		}
	})

	return pool
}

// URL returns the connection string of a pool from Get or New, for a test that starts a
// whole program or needs sessions outside of the pool.
func URL(pool *pgxpool.Pool) string { return pool.Config().ConnString() }

func running(t testing.TB) *server {
	t.Helper()
	if !suite.inMain {
		t.Fatal("dbtest: call dbtest.Main in TestMain, or nobody stops the server")
	}

	suite.once.Do(func() {
		// The start may include a download.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()

		suite.srv, suite.err = startServer(ctx)
	})

	if suite.err != nil {
		t.Fatalf("dbtest: %v", suite.err)
	}

	return suite.srv
}
