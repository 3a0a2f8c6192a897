package jobs

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// open is a manual task that waits for whom the assignment says.
func (b *testBundle) open(to Assignment, change ...func(*Request)) db.Task {
	b.t.Helper()
	return b.openAll(1, to, change...)[0]
}

func (b *testBundle) openAll(n int, to Assignment, change ...func(*Request)) []db.Task {
	b.t.Helper()
	runner := b.work(map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
		return Result{Assign: &to}, nil
	})}})
	defer runner.stop()
	out := make([]db.Task, n)
	var all errgroup.Group
	for i := range out {
		all.Go(func() (err error) {
			out[i], _, err = b.Create(b.ctx, request(append([]func(*Request){manual}, change...)...))
			return err
		})
	}
	require.NoError(b.t, all.Wait())
	for i := range out {
		out[i] = b.becomes(out[i].TaskID, Assigned)
	}
	return out
}

var (
	ann = Person{ID: "ann"}
	bob = Person{ID: "bob", Groups: []string{"accounting", "crew"}, Roles: []string{"approver"}}
)

// asUI is the caller of everything that people do.
var asUI = Actor{Name: "ui-framework"}

func TestWhoMayClaim(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tc := range map[string]struct {
		to  Assignment
		who Person
		may bool
	}{
		"the assignee":                {Assignment{AssigneeID: "ann"}, ann, true},
		"not another":                 {Assignment{AssigneeID: "ann"}, bob, false},
		"one of the group":            {Assignment{GroupID: "crew"}, bob, true},
		"not one of another group":    {Assignment{GroupID: "crew"}, ann, false},
		"a user beside the group":     {Assignment{GroupID: "g", CandidateUsers: []string{"x", "ann"}}, ann, true},
		"a candidate beside assignee": {Assignment{AssigneeID: "ann", CandidateUsers: []string{"bob"}}, bob, true},
		"by a candidate group":        {Assignment{CandidateGroups: []string{"x", "accounting"}}, bob, true},
		"by a candidate role":         {Assignment{CandidateRoles: []string{"approver"}}, bob, true},
		"not by a role of the name":   {Assignment{CandidateGroups: []string{"approver"}}, bob, false},
		"not by a user of the name":   {Assignment{CandidateUsers: []string{"crew"}}, bob, false},
		"anyone, if nobody is named":  {Assignment{CandidateUsers: []string{}}, ann, true},
	} {
		task := b.open(tc.to)
		after, err := b.Worklist.Claim(b.ctx, task.TaskID, asUI, tc.who)
		if !tc.may {
			require.ErrorIs(t, err, ErrForbidden, name)
			require.Equal(t, task, b.get(task.TaskID), name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, Running, Status(after.Status), name)
		require.Equal(t, tc.who.ID, *after.AssigneeID, name)
		require.Equal(t, task.GroupID, after.GroupID, name)
		require.Equal(t, task.Candidates, after.Candidates, name)
		require.Nil(t, after.OpenFor, "it waits for nobody")
		require.Equal(t, tc.who.ID, ask[string](b, "SELECT executor_id FROM task_attempt WHERE task_id = $1", task.TaskID))
		require.Equal(t, tc.who.ID, ask[string](b, "SELECT actor FROM task_event WHERE task_id = $1 AND type = 'started'", task.TaskID))
		require.Equal(t, db.LeaseKindPerson, ask[db.LeaseKind](b, "SELECT kind FROM lease WHERE task_id = $1", task.TaskID))
	}
}

func TestClaimedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.open(Assignment{GroupID: "crew"})
	claimed, err := b.Worklist.Claim(b.ctx, task.TaskID, Actor{IfMatch: task.Version}, bob)
	require.NoError(t, err)
	again, err := b.Worklist.Claim(b.ctx, task.TaskID, asUI, bob)
	require.NoError(t, err)
	require.Equal(t, claimed, again, "again changes nothing")
	again, err = b.Worklist.Claim(b.ctx, task.TaskID, Actor{IfMatch: claimed.Version}, bob)
	require.NoError(t, err)
	require.Equal(t, claimed, again)
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, Actor{IfMatch: task.Version}, bob)
	require.ErrorIs(t, err, ErrStale)

	_, err = b.Worklist.Claim(b.ctx, task.TaskID, asUI, Person{ID: "eve", Groups: []string{"crew"}})
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, "the task was claimed by bob at "+claimed.StartedAt.UTC().Format(time.RFC3339), conflict.Message)

	_, err = b.Worklist.Claim(b.ctx, uuid.New(), asUI, bob)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, Actor{Tenant: "other"}, bob)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = b.Worklist.Claim(b.ctx, b.create(remote).TaskID, asUI, bob)
	require.ErrorAs(t, err, &conflict, "not a person's")
	_, err = b.Worklist.Claim(b.ctx, b.create(manual).TaskID, asUI, bob)
	require.ErrorAs(t, err, &conflict, "nobody's turn yet")
	_, err = b.Cancel(b.ctx, task.TaskID, asUI)
	require.NoError(t, err)
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, asUI, bob)
	var illegal *IllegalTransition
	require.ErrorAs(t, err, &illegal)
	_, err = b.Worklist.Unclaim(b.ctx, task.TaskID, asUI, "bob")
	require.ErrorAs(t, err, &illegal)
	_, err = b.Worklist.Complete(b.ctx, task.TaskID, asUI, "bob", nil, "")
	require.ErrorAs(t, err, &illegal)
}

func TestUnclaimedClaimedByAnotherAndCompleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.open(Assignment{GroupID: "crew", CandidateUsers: []string{"ann"}})
	var conflict *Conflict
	_, err := b.Worklist.Unclaim(b.ctx, task.TaskID, asUI, "bob")
	require.ErrorAs(t, err, &conflict, "nobody has it")
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, asUI, bob)
	require.NoError(t, err)
	_, err = b.Worklist.Unclaim(b.ctx, task.TaskID, asUI, "ann")
	require.ErrorIs(t, err, ErrForbidden)
	back, err := b.Worklist.Unclaim(b.ctx, task.TaskID, Actor{Reason: "a cousin of mine"}, "bob")
	require.NoError(t, err)
	require.Equal(t, Assigned, Status(back.Status))
	require.Nil(t, back.AssigneeID)
	require.Nil(t, back.AssigneeName)
	require.Equal(t, task.GroupID, back.GroupID)
	require.Equal(t, task.Candidates, back.Candidates)
	require.Equal(t, task.DueAt, back.DueAt)
	require.Equal(t, task.OpenFor, back.OpenFor)

	_, err = b.Worklist.Claim(b.ctx, task.TaskID, asUI, ann)
	require.NoError(t, err)
	_, err = b.Worklist.Complete(b.ctx, task.TaskID, asUI, "bob", nil, "")
	require.ErrorIs(t, err, ErrForbidden)
	done, err := b.Worklist.Complete(b.ctx, task.TaskID, asUI, "ann", json.RawMessage(`{"ok": true}`), "it was easy")
	require.NoError(t, err)
	require.Equal(t, Completed, Status(done.Status))
	require.Equal(t, "ann", *done.AssigneeID)
	require.Equal(t, "created assigned started assigned started completed", b.story(task.TaskID))
	require.Equal(t, "1 bob RELEASED, 2 ann COMPLETED", ask[string](b,
		"SELECT string_agg(format('%s %s %s', attempt, executor_id, outcome), ', ' ORDER BY attempt) FROM task_attempt WHERE task_id = $1", task.TaskID))
	payload := func(seq int) string {
		return ask[string](b, "SELECT actor || ' ' || payload FROM task_event WHERE task_id = $1 AND seq = $2", task.TaskID, seq)
	}
	require.Contains(t, payload(4), `"reason":"a cousin of mine"`)
	require.Equal(t, `ann {"outputSummary":{"ok":true},"comment":"it was easy"}`, payload(6))
}

// A candidate who took what was another's gives it back to that other, whoever
// says so.
func TestUnclaimRemembersTheAssignee(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.open(Assignment{AssigneeID: "ann", AssigneeName: "Ann", CandidateGroups: []string{"crew"}})
	for name, unclaim := range map[string]func() (db.Task, error){
		"by the person": func() (db.Task, error) { return b.Worklist.Unclaim(b.ctx, task.TaskID, asUI, "bob") },
		"by the workflows": func() (db.Task, error) {
			return b.SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: Assigned})
		},
	} {
		claimed, err := b.Worklist.Claim(b.ctx, task.TaskID, asUI, bob)
		require.NoError(t, err, name)
		require.Equal(t, "bob", *claimed.AssigneeID, name)
		back, err := unclaim()
		require.NoError(t, err, name)
		require.Equal(t, "ann Ann", *back.AssigneeID+" "+*back.AssigneeName, name)
		require.Equal(t, task.OpenFor, back.OpenFor, name)
	}
}

func TestCompleteByTheAssignee(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b, func(d *Definition) { d.Type, d.ExecutionConfig.Executor, d.RetryPolicy = Manual, "manual", nil })
	task := b.open(Assignment{AssigneeID: "ann", CandidateUsers: []string{"bob"}}, of("calculate"))
	_, err := b.Worklist.Complete(b.ctx, task.TaskID, asUI, "bob", json.RawMessage(`{"sum": 1}`), "")
	require.ErrorIs(t, err, ErrForbidden, "a candidate claims it first")
	_, err = b.Worklist.Complete(b.ctx, task.TaskID, asUI, "ann", json.RawMessage(`{"sum": "x"}`), "")
	var bad *Invalid
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "/output/sum", bad.Violations[0].Path)
	require.Equal(t, task, b.get(task.TaskID))
	_, err = b.Worklist.Complete(b.ctx, task.TaskID, Actor{IfMatch: task.Version + 1}, "ann", json.RawMessage(`{"sum": 1}`), "")
	require.ErrorIs(t, err, ErrStale)
	done, err := b.Worklist.Complete(b.ctx, task.TaskID, Actor{IfMatch: task.Version}, "ann", json.RawMessage(`{"sum": 1}`), "")
	require.NoError(t, err)
	require.Equal(t, task.AssignedAt, done.StartedAt)
	require.Equal(t, "created assigned completed", b.story(task.TaskID))
}

func TestClaimNextTakesTheMostUrgent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	due := func(hours time.Duration) func(*Request) {
		return func(req *Request) { req.DueDate = ptr(time.Now().Add(hours * time.Hour)) }
	}
	to := Assignment{GroupID: "crew"}
	_, err := b.Worklist.Claim(b.ctx, b.open(to, priority(Critical)).TaskID, asUI, bob)
	require.NoError(t, err, "taken already")
	b.open(Assignment{GroupID: "others"}, priority(Critical))
	_, err = b.Cancel(b.ctx, b.open(to, priority(Critical)).TaskID, asUI)
	require.NoError(t, err)
	fifth := b.open(to, priority(Low), due(1))
	third := b.open(to, priority(High), due(3))
	at := time.Now().Add(2 * time.Hour)
	same := func(req *Request) { req.DueDate = &at }
	first := b.open(to, priority(High), same)
	second := b.open(Assignment{CandidateRoles: []string{"approver"}}, priority(High), same)
	fourth := b.open(Assignment{AssigneeID: "bob"})
	for i, want := range []db.Task{first, second, third, fourth, fifth} {
		got, err := b.Worklist.ClaimNext(b.ctx, asUI, bob)
		require.NoError(t, err)
		require.Equal(t, want.TaskID, got.TaskID, "the %d.", i+1)
		require.Equal(t, "bob", *got.AssigneeID)
	}
	none, err := b.Worklist.ClaimNext(b.ctx, asUI, bob)
	require.NoError(t, err)
	require.Nil(t, none)
	none, err = b.Worklist.ClaimNext(b.ctx, Actor{Tenant: "other"}, Person{ID: "x", Groups: []string{"others"}})
	require.NoError(t, err)
	require.Nil(t, none)
}

var (
	racers = flag.Int("racers", 200, "how many people race in TestPeopleRaceForTasks")
	prizes = flag.Int("prizes", 1000, "for how many tasks")
)

// Two hundred people at two processes want a thousand tasks; some give one back now and
// then. Nobody gets what another has, all are done once, and whoever looks right after
// an answer sees what it said, also at the other process.
func TestPeopleRaceForTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.openAll(*prizes, Assignment{CandidateGroups: []string{"crew"}})
	begun := time.Now()
	processes := []*testBundle{b, join(t, b.pool, "p2")}
	var mu sync.Mutex
	holders, done := map[uuid.UUID]string{}, map[uuid.UUID]bool{}
	claims, looks := 0, 0
	var all sync.WaitGroup
	for i := range *racers {
		p, other, who, dice := processes[i%2], processes[1-i%2], Person{ID: fmt.Sprintf("person-%d", i), Groups: []string{"crew"}}, dice(i)
		current := func(said db.Task, mine bool) {
			got, err := other.Get(p.ctx, "", said.TaskID)
			switch {
			case err != nil:
				t.Errorf("look: %v", err)
			case mine && (got.Version != said.Version || got.Status != said.Status || *got.AssigneeID != who.ID):
				t.Errorf("%s was told %d, %s, and sees %d, %s", who.ID, said.Version, said.Status, got.Version, got.Status)
			case got.Version < said.Version:
				t.Errorf("%s was told %d, and sees %d", who.ID, said.Version, got.Version)
			}
			mu.Lock()
			defer mu.Unlock()
			looks++
		}
		all.Go(func() {
			gaveBack := false
			for {
				task, err := p.Worklist.ClaimNext(p.ctx, asUI, who)
				if err != nil {
					t.Errorf("claim next: %v", err)
					return
				}
				if task == nil {
					return
				}
				mu.Lock()
				claims++
				if other := holders[task.TaskID]; other != "" || done[task.TaskID] {
					t.Errorf("%s got what %q has", who.ID, other)
				}
				holders[task.TaskID] = who.ID
				mu.Unlock()
				current(*task, true)
				back := !gaveBack && dice.IntN(4) == 0
				mu.Lock()
				delete(holders, task.TaskID)
				done[task.TaskID] = !back
				mu.Unlock()
				var after db.Task
				if back {
					gaveBack = true
					after, err = p.Worklist.Unclaim(p.ctx, task.TaskID, asUI, who.ID)
				} else {
					after, err = p.Worklist.Complete(p.ctx, task.TaskID, asUI, who.ID, nil, "")
				}
				if err != nil {
					t.Errorf("end %s: %v", task.TaskID, err)
					return
				}
				current(after, !back)
			}
		})
	}
	all.Wait()
	completed := ask[int](b, "SELECT count(*) FROM task_attempt WHERE outcome = 'COMPLETED'")
	require.Equal(t, *prizes, completed+ask[int](b, "SELECT count(*) FROM task WHERE status = 'ASSIGNED'"))
	say(t, map[string]any{
		"people": *racers, "tasks": *prizes, "claims": claims, "claimedTwice": 0, "completed": completed, "looks": looks, "stale": 0,
		"seconds": time.Since(begun).Seconds(),
	})
}

// All at one task: one has it, and the others are told who.
func TestAllClaimOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.open(Assignment{CandidateUsers: []string{}})
	var all sync.WaitGroup
	var mu sync.Mutex
	won, told := "", []string{}
	for i := range 20 {
		all.Go(func() {
			id := fmt.Sprintf("person-%d", i)
			_, err := b.Worklist.Claim(b.ctx, task.TaskID, asUI, Person{ID: id})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won += id
			} else {
				told = append(told, err.Error())
			}
		})
	}
	all.Wait()
	require.Equal(t, won, *b.get(task.TaskID).AssigneeID, "one only")
	require.Len(t, told, 19)
	for _, text := range told {
		require.Contains(t, text, "claimed by "+won+" at ")
	}
}

// Who may claim is in an index, and still no move of a task that code does touches
// one.
func TestMovesOfCodeStayHeapOnly(t *testing.T) {
	t.Parallel()
	const tasks = 20
	b := join(t, dbtest.New(t), "p1") // nobody else is in its statistics
	b.work(noop(does(`{"n": 1}`, nil)))
	for range tasks {
		b.becomes(b.create().TaskID, Completed)
	}
	waitFor(t, "the statistics", func() bool {
		return ask[int](b, "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'task'") >= tasks
	})
	// A page without room is no fault of an index's; otherwise it would be all.
	require.Less(t, ask[int](b, "SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'task'"), tasks/4)
}

// Who could claim it before a reassignment has no say after it.
func TestReassignEndsCandidacy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
		return Result{Assign: &Assignment{CandidateUsers: []string{"ann"}, CandidateGroups: []string{"clerks"}}}, nil
	})}})
	task := b.becomes(b.create(manual).TaskID, Assigned)
	_, err := b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui"}, Reassignment{AssigneeID: "bob"})
	require.NoError(t, err)
	require.Nil(t, b.get(task.TaskID).Candidates)
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, Actor{Name: "ui"}, Person{ID: "ann", Groups: []string{"clerks"}})
	require.ErrorIs(t, err, ErrForbidden)
	_, err = b.Worklist.Claim(b.ctx, task.TaskID, Actor{Name: "ui"}, Person{ID: "bob"})
	require.NoError(t, err)
}

// A reassignment by a person holds for the task as it was looked at: who lost it
// meanwhile gives nothing away.
func TestReassignIsDecidedForOneVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
		return Result{Assign: &Assignment{AssigneeID: "ann"}}, nil
	})}})
	task := b.becomes(b.create(manual).TaskID, Assigned)
	m, err := b.Worklist.reassignTransition(b.ctx, task, Actor{Name: "ann"}, Reassignment{AssigneeID: "bob", Person: &Person{ID: "ann"}})
	require.NoError(t, err)
	_, err = b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui"}, Reassignment{AssigneeID: "carl"})
	require.NoError(t, err)
	require.False(t, b.apply(b.ctx, m).applied)
	require.Equal(t, "carl", *b.get(task.TaskID).AssigneeID)
	_, err = b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ann"}, Reassignment{AssigneeID: "bob", Person: &Person{ID: "ann"}})
	require.ErrorIs(t, err, ErrForbidden)
}
