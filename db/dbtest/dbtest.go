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
// The first test that asks for a database starts a private throw-away cluster
// (package localpg), or opens the server of TES_TEST_DATABASE_URL if that is set,
// and makes a template there: an empty database with all migrations. Each further
// database is a copy of the template.
//
// A copy costs 10 to 100 ms, so Get hands databases out again: when a test has
// passed, what it wrote is deleted, which takes about 1 ms. A database goes back
// only if it is then as the template was; one that is not, or whose test failed,
// nobody gets again. Sequences go on counting, so do not expect ids.
//
// Read from the environment: TES_TEST_DATABASE_URL, and for the private cluster
// TES_DATA_DIR (where a download is kept), TES_PG_BIN, TES_PG_VERSION, TES_PG_SYSTEM,
// TES_PG_DOWNLOAD, TES_PG_MIRROR and TES_PG_USER, all as for tes itself.
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
	// maxConns of a test's pool: more than a test needs, so that none waits for
	// itself.
	maxConns = 20
	// patience with what should take milliseconds.
	patience = 30 * time.Second
	// farewell is how long the sessions of a test may take to be gone after it.
	farewell = 10 * time.Second
)

// suite is this test binary.
var suite struct {
	inMain bool // set before any test runs

	once sync.Once // guards the start; the rest is read after it
	srv  *server
	err  error
}

// Main runs the tests of a package and removes what Get and New have started for
// them. It does not return. A test binary that is killed leaves nothing running
// either: see localpg. checks are asked last, such as whether a goroutine leaked.
func Main(m *testing.M, checks ...func() error) {
	localpg.ClearPGEnv() // they would be mixed into every connection string
	suite.inMain = true
	code := m.Run()
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

// Get returns a pool on an empty, migrated database that no other test uses until
// this one has ended. It is the engine's kind of pool (pgpool.Config.Engine), which
// the guard on the table task lets through; to be somebody else, open another with
// URL. It is closed by us.
//
// It may have been used before: for a test that changes the schema, or looks at
// sequences, there is New. The sessions a test opens itself, by URL, must be closed
// when it ends; those left over fail it.
func Get(t testing.TB) *pgxpool.Pool {
	t.Helper()
	s := running(t)
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

// New returns a pool on a database that was made for this test and is used by no
// other.
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

// URL is the connection string of a pool from Get or New, for a test that starts a
// whole program or needs sessions outside of the pool.
func URL(pool *pgxpool.Pool) string { return pool.Config().ConnString() }

func running(t testing.TB) *server {
	t.Helper()
	if !suite.inMain {
		t.Fatal("dbtest: call dbtest.Main in TestMain, or nobody stops the server")
	}
	suite.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a download, at worst
		defer cancel()
		suite.srv, suite.err = startServer(ctx)
	})
	if suite.err != nil {
		t.Fatalf("dbtest: %v", suite.err)
	}
	return suite.srv
}
