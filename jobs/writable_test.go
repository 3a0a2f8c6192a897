package jobs

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// Somebody locks a table that creates write: their callers are told so when lock_timeout has
// passed, and not when their own patience ends; /readyz has the reason; what was worked
// meanwhile is written when the lock is gone.
func TestTableLockIsToldAtOnce(t *testing.T) {
	t.Parallel()
	for _, lock := range []struct{ table, mode string }{{"task", "ACCESS EXCLUSIVE"}, {"task", "SHARE"}, {"river_job", "EXCLUSIVE"}} {
		t.Run(lock.table+" "+lock.mode, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			p := join(t, enginePool(t, b.pool), "p2")
			carryOn := make(chan struct{})
			worked := make(chan struct{})
			p.work(noop(func(context.Context, Job) (Result, error) {
				close(worked)
				<-carryOn
				return Result{}, nil
			}), stalled)
			task := p.create()
			receiveAll(t, worked)
			require.NoError(t, p.Writable(b.ctx))

			held := b.lock("LOCK TABLE " + lock.table + " IN " + lock.mode + " MODE")
			close(carryOn)
			_, _, err := p.Create(b.ctx, request(remote))
			require.ErrorIs(t, err, ErrUnavailable)
			require.ErrorContains(t, err, "a table is locked by another session")
			requireNotWritable(t, p.Writable(b.ctx), "a lock on its tables is held by another session")

			held.letGo()
			p.becomes(task.TaskID, Completed)
			p.create(remote)
			// A result whose try began under the lock may be told last, and an answer stands a while.
			waitFor(t, "writes to be taken", func() bool { return p.Writable(b.ctx) == nil })
		})
	}
}

func receiveAll(t *testing.T, closed <-chan struct{}) {
	t.Helper()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("it never came")
	}
}

func requireNotWritable(t *testing.T, err error, why string) {
	t.Helper()
	var not *NotWritable
	require.ErrorAs(t, err, &not)
	require.Equal(t, why, not.Why)
}

// A row that somebody has locked holds up whoever writes to it, and says nothing of the
// database.
func TestLockedRowIsNoLockedTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := join(t, enginePool(t, b.pool), "p2")
	task := p.create(remote)
	held := b.hold(task)
	asked, enough := context.WithTimeout(b.ctx, 3*time.Second)
	defer enough()
	_, err := p.Cancel(asked, task.TaskID, Actor{Name: "o"})
	require.ErrorIs(t, err, ErrUnavailable)
	require.NotContains(t, err.Error(), "a table is locked")
	require.NoError(t, p.Writable(b.ctx))
	held.letGo()
}

// A database that takes no writes says so to who asks, whether or not anybody tried to
// write; and takes them again when it does.
func TestWritableAsksWhenNothingIsWritten(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	name := pgx.Identifier{pool.Config().ConnConfig.Database}.Sanitize()
	b := join(t, pool, "p1")
	require.NoError(t, b.Writable(b.ctx), "nobody has written yet")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task"))

	readOnly := func(word string) {
		t.Helper()
		conn, err := pgx.Connect(b.ctx, dbtest.URL(pool))
		require.NoError(t, err)
		defer conn.Close(b.ctx)
		for _, statement := range []string{"SET default_transaction_read_only = off", "ALTER DATABASE " + name + " SET default_transaction_read_only = " + word} {
			_, err = conn.Exec(b.ctx, statement)
			require.NoError(t, err)
		}
		pool.Reset()
	}
	readOnly("on")
	waitFor(t, "it to be told", func() bool { return b.Writable(b.ctx) != nil })
	requireNotWritable(t, b.Writable(b.ctx), "it is read-only, or a standby")
	_, _, err := b.Create(b.ctx, request())
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorIs(t, err, pgpool.ErrReadOnly)

	readOnly("off")
	waitFor(t, "it to be told", func() bool { return b.Writable(b.ctx) == nil })
	b.create(remote)
}

// Each way in which the server refuses has words of ours, and none of the server's own.
func TestWhyNotWritable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for code, want := range map[string]string{
		"53100": "its disk is full", "53200": "it is out of memory", "53300": "it has no connection left",
		"25006": "it is read-only, or a standby", "57P03": "it stops or starts", "58030": "SQLSTATE 58030",
	} {
		_, err := b.pool.Exec(b.ctx, "DO $$ BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = '"+code+"'; END $$")
		require.Error(t, err)
		require.Equal(t, want, whyNotWritable(err))
	}
	require.Equal(t, "it does not answer", whyNotWritable(errors.New("10.0.0.7: connection refused")))
}
