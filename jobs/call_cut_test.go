package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Where a connection ends at its next commit.
const (
	whole        = iota // nowhere
	beforeCommit        // before the database has heard of it
	afterCommit         // when the database has committed, and before anybody has heard that
)

// dying is a process whose connection ends at an exact point, once: for the database it is
// killed there.
type dying struct {
	net.Conn
	at *atomic.Int32
}

func (d *dying) Write(b []byte) (int, error) {
	if len(b) > 0 && b[0] == 'Q' && bytes.HasSuffix(b, []byte("commit\x00")) {
		switch d.at.Swap(whole) {
		case beforeCommit:
			_ = d.Close()
			return 0, net.ErrClosed
		case afterCommit:
			n, err := d.Conn.Write(b)
			_, _ = d.Read(make([]byte, 1<<10)) // the answer comes when it is committed
			_ = d.Close()
			return n, err
		}
	}
	return d.Conn.Write(b)
}

// Whatever dies between a call and its answer: sent again, the call is made once, and is
// answered as it was made. There is no point at which the effect is there without the answer,
// or the answer without the effect.
func TestACallIsMadeOnceWhereverItsCommitIsCut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := &atomic.Int32{}
	cfg := b.pool.Config()
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &dying{conn, at}, err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	far := join(t, pool, "far")

	made := func(req Request) uuid.UUID {
		task, _, err := b.Create(b.ctx, req)
		require.NoError(t, err)
		return task.TaskID
	}
	letter := func() uuid.UUID {
		id := made(request())
		_, err := b.SetStatus(b.ctx, id, Actor{Name: "o"}, Update{Status: Failed})
		require.NoError(t, err)
		return id
	}
	for name, begin := range map[string]func() (act func(Actor) error, effects string, of any){
		"a move": func() (func(Actor) error, string, any) {
			id := made(request(func(req *Request) { req.TaskType, req.Config.Executor = Manual, "manual" }))
			return func(actor Actor) error {
				_, err := far.Worklist.Reassign(far.ctx, id, actor, Reassignment{AssigneeID: "jane"})
				return err
			}, "SELECT count(*) FROM task_event WHERE type = 'assigned' AND task_id = $1", id
		},
		"a definition": func() (func(Actor) error, string, any) {
			id := "d-" + uuid.NewString()
			return func(actor Actor) error {
				_, err := far.Definitions.PutFor(far.ctx, actor, calculate(func(d *Definition) { d.ID = id }))
				return err
			}, "SELECT count(*) FROM task_definition WHERE definition_id = $1", id
		},
		"a discard": func() (func(Actor) error, string, any) {
			id := letter()
			return func(actor Actor) error {
				_, err := far.DeadLetters.Discard(far.ctx, id, actor)
				return err
			}, "SELECT count(*) FROM dead_letter_discard WHERE task_id = $1", id
		},
		"a redrive": func() (func(Actor) error, string, any) {
			id := letter()
			return func(actor Actor) error {
				_, err := far.DeadLetters.Redrive(far.ctx, actor, Redrive{TaskIDs: []uuid.UUID{id}, Rate: 1})
				return err
			}, "SELECT count(*) FROM redrive_item WHERE task_id = $1", id
		},
	} {
		for _, point := range []int32{beforeCommit, afterCommit} {
			act, effects, of := begin()
			id := CallID{Caller: "ui", Operation: name, Key: fmt.Sprint(point)}
			call := func() (*Call, *CallAnswer) {
				c, before, err := far.Calls.Begin(far.ctx, id, []byte("body"))
				require.NoError(t, err, name)
				if c != nil {
					c.Answer = func(made any) (CallAnswer, error) {
						body, err := json.Marshal(fmt.Sprintf("%T", made))
						return CallAnswer{Status: 200, Body: body}, err
					}
				}
				return c, before
			}

			first, _ := call()
			at.Store(point)
			require.ErrorIs(t, act(Actor{Name: "ui", Call: first}), ErrUnavailable, name)
			require.EqualValues(t, whole, at.Load(), "%s was cut", name)
			far.Calls.Abandon(far.ctx, first)

			again, before := call()
			if point == afterCommit {
				require.Nil(t, again, name)
				require.NotEmpty(t, before.Body, name)
			} else {
				require.Nil(t, before, name)
				require.Zero(t, ask[int](b, effects, of), name)
				require.NoError(t, act(Actor{Name: "ui", Call: again}), name)
				require.NotNil(t, again.StoredAnswer(), name)
			}
			require.Equal(t, 1, ask[int](b, effects, of), "%s is made once", name)
		}
	}
}
