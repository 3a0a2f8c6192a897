package jobs

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// assigned is a manual task of ann's.
func (b *testBundle) assigned(change ...func(*Request)) db.Task {
	b.t.Helper()
	runner := b.work(assigning("ann"))
	defer runner.stop()
	task := b.create(append([]func(*Request){manual}, change...)...)
	return b.becomes(task.TaskID, Assigned)
}

func TestPersonDoesATask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	require.Equal(t, "ann", *task.AssigneeID)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), *task.DueAt, time.Minute)
	require.Equal(t, "completed", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID), "the open task lives in our table")

	task, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ui-framework"}, Update{Status: Running})
	require.NoError(t, err)
	require.Equal(t, Running, Status(task.Status))
	require.EqualValues(t, 1, task.Attempt)
	lease, err := b.q.LeaseGet(b.ctx, task.TaskID)
	require.NoError(t, err)
	require.Equal(t, db.LeaseKindPerson, lease.Kind)
	require.Equal(t, lease.DeadlineAt.UTC(), lease.ExpiresAt.UTC(), "people send no heartbeats")

	task, err = b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ui-framework"}, Update{Status: Completed, Output: json.RawMessage(`{"ok": true}`)})
	require.NoError(t, err)
	require.JSONEq(t, `{"ok": true}`, string(task.Output))
	require.Equal(t, "created assigned started completed", b.story(task.TaskID))
	require.Equal(t, "ann", ask[string](b, "SELECT executor_id FROM task_attempt WHERE task_id = $1", task.TaskID))
}

// Completed straight from ASSIGNED, the work began when it was assigned.
func TestCompletedWithoutAStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	done, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Completed})
	require.NoError(t, err)
	require.Equal(t, task.AssignedAt.UTC(), done.StartedAt.UTC())
	require.EqualValues(t, 1, done.Attempt)
	require.Equal(t, "created assigned completed", b.story(task.TaskID))
}

func TestUnclaimGivesATaskBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Running})
	require.NoError(t, err)
	task, err = b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Assigned})
	require.NoError(t, err)
	require.Equal(t, "ann", *task.AssigneeID)
	require.Equal(t, "RELEASED", ask[string](b, "SELECT outcome::text FROM task_attempt WHERE task_id = $1", task.TaskID))
	require.Equal(t, "created assigned started assigned", b.story(task.TaskID))
}

func TestPersonsDeadlinePasses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Running})
	require.NoError(t, err)
	b.exec("UPDATE lease SET expires_at = now(), deadline_at = now() WHERE task_id = $1", task.TaskID)
	b.work(nil)
	task = b.becomes(task.TaskID, TimedOut)
	require.Equal(t, CodeTimeout, codeOf(t, task))
}

// Every status against every status: what is legal is made with its event, what is
// not is refused with where it may go.
func TestEveryUpdateByHand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	runner := b.work(assigning("ann"))
	reach := map[Status]func() db.Task{
		Pending: func() db.Task { return b.create(remote) },
		Assigned: func() db.Task {
			task := b.create(manual)
			return b.becomes(task.TaskID, Assigned)
		},
	}
	for _, end := range []Status{Completed, Failed, Cancelled, TimedOut, Running} {
		reach[end] = func() db.Task {
			task := reach[Assigned]()
			task, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: end})
			require.NoError(t, err)
			return task
		}
	}
	for _, from := range Statuses {
		for _, to := range Statuses {
			name := fmt.Sprintf("%s to %s", from, to)
			task := reach[from]()
			after, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "orchestrator"}, Update{Status: to})
			legal := false
			for _, s := range Legal(from) {
				legal = legal || s == to
			}
			switch {
			case from == Cancelled && to == Cancelled:
				require.NoError(t, err, name)
				require.Equal(t, task.Version, after.Version, "cancelled twice is cancelled once")
			case legal && !from.Terminal() && from == Pending && to == Assigned:
				var bad *Invalid
				require.ErrorAs(t, err, &bad, "nobody is named")
			case legal && !from.Terminal():
				require.NoError(t, err, name)
				if from == Running && to == Pending {
					b.becomes(task.TaskID, Assigned) // the handler finds somebody again
					continue
				}
				require.Equal(t, to, Status(after.Status), name)
				require.Equal(t, task.Version+1, after.Version, name)
			default:
				var illegal *IllegalTransition
				require.ErrorAs(t, err, &illegal, name)
				require.Equal(t, from, illegal.From)
				require.Equal(t, to, illegal.To)
				require.Equal(t, from.Terminal(), len(illegal.Legal) == 0)
				require.Equal(t, task.Version, b.get(task.TaskID).Version, name)
			}
		}
	}
	runner.stop()
}

func TestIfMatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	stale := Actor{Name: "ann", IfMatch: task.Version - 1}
	_, err := b.SetStatus(b.ctx, task.TaskID, stale, Update{Status: Running})
	require.ErrorIs(t, err, ErrStale)
	_, err = b.Worklist.Reassign(b.ctx, task.TaskID, stale, Reassignment{AssigneeID: "bob"})
	require.ErrorIs(t, err, ErrStale)
	_, err = b.Cancel(b.ctx, task.TaskID, stale)
	require.ErrorIs(t, err, ErrStale)

	fresh := Actor{Name: "ann", IfMatch: task.Version}
	task, err = b.Worklist.Reassign(b.ctx, task.TaskID, fresh, Reassignment{AssigneeID: "bob"})
	require.NoError(t, err)
	fresh.IfMatch = task.Version
	_, err = b.SetStatus(b.ctx, task.TaskID, fresh, Update{Status: Running})
	require.NoError(t, err)
	_, err = b.Cancel(b.ctx, task.TaskID, fresh)
	require.ErrorIs(t, err, ErrStale)
}

func TestResultByHandMustFitTheSchema(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b, func(d *Definition) { d.Type, d.ExecutionConfig.Executor, d.RetryPolicy = Manual, "manual", nil })
	task := b.assigned(of("calculate"))
	_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Completed, Output: json.RawMessage(`{"sum": "x"}`)})
	var bad *Invalid
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "/output/sum", bad.Violations[0].Path)
	_, err = b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Completed, Output: json.RawMessage(`{"sum": 1}`)})
	require.NoError(t, err)
}

func TestReassign(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.assigned()
	due := time.Now().Add(48 * time.Hour).UTC().Truncate(time.Microsecond)
	task, err := b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui", Reason: "holiday"}, Reassignment{AssigneeID: "bob", AssigneeName: "Bob", DueDate: &due})
	require.NoError(t, err)
	require.Equal(t, "bob", *task.AssigneeID)
	require.Equal(t, "Bob", *task.AssigneeName)
	require.Equal(t, due, task.DueAt.UTC())

	// Begun work is taken away too, and is told as such.
	_, err = b.SetStatus(b.ctx, task.TaskID, Actor{Name: "bob"}, Update{Status: Running})
	require.NoError(t, err)
	task, err = b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui"}, Reassignment{GroupID: "accounting"})
	require.NoError(t, err)
	require.Equal(t, Assigned, Status(task.Status))
	require.Nil(t, task.AssigneeID)
	require.Equal(t, "accounting", *task.GroupID)
	require.Equal(t, due, task.DueAt.UTC(), "the due date stays")
	require.Equal(t, "created assigned assigned started assigned", b.story(task.TaskID))

	for name, to := range map[string]Reassignment{"nobody": {}, "both": {AssigneeID: "a", GroupID: "g"}} {
		_, err = b.Worklist.Reassign(b.ctx, task.TaskID, Actor{}, to)
		var bad *Invalid
		require.ErrorAs(t, err, &bad, name)
	}
	automated := b.create(remote)
	_, err = b.Worklist.Reassign(b.ctx, automated.TaskID, Actor{}, Reassignment{AssigneeID: "a"})
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	_, err = b.Cancel(b.ctx, task.TaskID, Actor{})
	require.NoError(t, err)
	_, err = b.Worklist.Reassign(b.ctx, task.TaskID, Actor{}, Reassignment{AssigneeID: "a"})
	var illegal *IllegalTransition
	require.ErrorAs(t, err, &illegal)
	_, err = b.Worklist.Reassign(b.ctx, uuid.New(), Actor{}, Reassignment{AssigneeID: "a"})
	require.ErrorIs(t, err, ErrNotFound)
}

func TestNobodyForAManualTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"manual": {Assigns: true, Executor: does("", &Failure{Code: "ASSIGNMENT_ERROR", Retryable: ptr(false)})}})
	task := b.create(manual, policy(RetryPolicy{MaxRetries: 3}))
	task = b.becomes(task.TaskID, Failed)
	require.Equal(t, "ASSIGNMENT_ERROR", codeOf(t, task))
	require.Equal(t, "created failed", b.story(task.TaskID))
}
