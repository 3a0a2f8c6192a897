package jobs

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func TestRemindersAt50And75And90Percent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"})
	want := []string{"ann assigned 0 in-app"}
	for _, percent := range []int{50, 75, 90} {
		require.Equal(t, percent, b.comes(task.TaskID))
		b.pass(task.TaskID, percent)
		want = append(want, fmt.Sprintf("ann reminder %d in-app", percent))
		b.tells(p, want...)
	}
	require.Equal(t, 100, b.comes(task.TaskID))
	b.pass(task.TaskID, 100)
	b.tells(p, append(want, "ann overdue 100 in-app")...)
	b.over()
	require.Equal(t, "ASSIGNED", string(b.get(task.TaskID).Status), "it stays theirs")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE queue = 'task-notices' AND kind <> 'notice.forget' AND state <> 'completed'"), "nothing is to come")
}

// While nobody is there, steps are missed. Of those only the last is told.
func TestAfterARestartOnlyTheLastMissedReminderIsSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	stop := b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"})
	b.tells(p, "ann assigned 0 in-app")
	b.comes(task.TaskID)
	stop()
	b.pass(task.TaskID, 80)
	next := join(t, b.pool, "p2")
	stop = next.notices(p)
	b.tells(p, "ann assigned 0 in-app", "ann reminder 75 in-app")
	require.Equal(t, 90, b.comes(task.TaskID))
	stop()
	b.pass(task.TaskID, 100)
	next.notices(p)
	b.tells(p, "ann assigned 0 in-app", "ann reminder 75 in-app", "ann overdue 100 in-app")
	b.over()
	b.tells(p, "ann assigned 0 in-app", "ann reminder 75 in-app", "ann overdue 100 in-app")
}

// The same by the clock: a due date of two seconds, and one process after the other.
func TestDeadlineByTheClock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	stop := b.notices(p)
	due := time.Now().Add(2 * time.Second)
	task := b.open(Assignment{AssigneeID: "ann"}, func(req *Request) { req.DueDate = &due }, saying(func(c *ExecutionConfig) {
		c.Escalation = &Escalation{Notify: []string{"boss"}, ReassignTo: &EscalationTarget{GroupID: "crew"}}
	}))
	waitFor(t, "the first reminder", func() bool { return len(p.told()) > 1 })
	stop()
	join(t, b.pool, "p2").notices(p)
	task = b.until(task.TaskID, "escalated", func(task db.Task) bool { return stringOf(task.GroupID) == "crew" })
	require.False(t, task.AssignedAt.Before(*task.DueAt))
	waitFor(t, "the end to be told", func() bool {
		return ask[int](b, "SELECT count(*) FROM notice WHERE what IN ('overdue', 'escalated') AND outcome = 'sent'") == 2
	})
	b.over()
	// A machine that is slow may have missed one, but never repeats one.
	last := -1
	for _, percent := range ask[[]int](b, "SELECT array_agg(percent::integer ORDER BY notice_id) FROM notice WHERE user_id = 'ann'") {
		require.Greater(t, percent, last)
		last = percent
	}
	require.Equal(t, 100, last)
}

func TestEscalation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann", CandidateUsers: []string{"bob"}}, byChannels("push"), saying(func(c *ExecutionConfig) {
		c.Escalation = &Escalation{Notify: []string{"boss", "ann"}, ReassignTo: &EscalationTarget{AssigneeID: "deputy"}}
	}))
	_, err := b.Worklist.Claim(b.ctx, task.TaskID, asUI, bob)
	require.NoError(t, err, "that it was begun does not keep it")
	b.pass(task.TaskID, 100)
	task = b.until(task.TaskID, "escalated", func(task db.Task) bool { return stringOf(task.AssigneeID) == "deputy" })
	require.Equal(t, Assigned, Status(task.Status))
	require.Nil(t, task.Candidates)
	require.False(t, task.DueAt.After(time.Now()), "it keeps its due date")
	require.Equal(t, "created assigned started assigned", b.story(task.TaskID))
	require.Equal(t, "tes:escalation the due date passed", ask[string](b,
		"SELECT actor || ' ' || (payload::json ->> 'reason') FROM task_event WHERE task_id = $1 AND seq = 4", task.TaskID))
	waitFor(t, "all to be told", func() bool { return len(p.told()) >= 4 })
	b.over()
	told := []string{}
	for _, line := range p.told() {
		if line != "ann assigned 0 push" { // unless she heard of it before it was claimed
			told = append(told, line)
		}
	}
	require.ElementsMatch(t, []string{"bob overdue 100 push", "boss escalated 100 push", "ann escalated 100 push", "deputy assigned 0 push"}, told)
	require.Equal(t, "created assigned started assigned", b.story(task.TaskID), "once")
}

// Done twice, an escalation and a step change nothing: who is taken for dead may come
// back.
func TestStepsAndEscalationsAreDoneOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.open(Assignment{AssigneeID: "ann"}, saying(func(c *ExecutionConfig) {
		c.Escalation = &Escalation{ReassignTo: &EscalationTarget{AssigneeID: "deputy"}}
	}))
	chain := ask[int64](b, "SELECT deadline_id FROM task WHERE task_id = $1", task.TaskID)
	b.exec("UPDATE river_job SET state = 'running', attempt = 2, attempted_at = now() WHERE id = $1", chain)
	do := db.DeadlineStepParams{
		JobID: chain, Attempt: 1, TaskID: task.TaskID, DeadlineID: chain,
		NoticeIds: []int64{chain + 1_000_000}, Whats: []string{"assigned"}, UserIds: []string{"ann"}, NextAt: unset,
	}
	made, err := b.q.DeadlineStep(b.ctx, do)
	require.NoError(t, err)
	require.Zero(t, made, "another has the job")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM notice"))
	do.Attempt = 2
	for _, want := range []int32{1, 0} {
		made, err = b.q.DeadlineStep(b.ctx, do)
		require.NoError(t, err)
		require.Equal(t, want, made)
	}
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM notice"))

	b.exec("UPDATE task SET due_at = now() WHERE task_id = $1", task.TaskID)
	for range 2 {
		b.exec(`INSERT INTO river_job (state, max_attempts, priority, args, kind, queue)
			VALUES ('available', 9, 3, jsonb_build_object('task_id', $1::uuid, 'deadline_id', $2::bigint), 'notice.escalation', 'task-notices')`, task.TaskID, chain)
	}
	b.notices(&post{})
	b.until(task.TaskID, "escalated", func(task db.Task) bool { return stringOf(task.AssigneeID) == "deputy" })
	b.over()
	require.Equal(t, "created assigned assigned", b.story(task.TaskID))
}

func TestALaterAssignmentSupersedesTheChain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"})
	b.tells(p, "ann assigned 0 in-app")
	b.comes(task.TaskID)
	old := ask[int64](b, "SELECT id FROM river_job WHERE kind = 'notice.deadline' AND state = 'scheduled'")
	due := time.Now().Add(time.Hour)
	_, err := b.Worklist.Reassign(b.ctx, task.TaskID, asUI, Reassignment{AssigneeID: "bob", DueDate: &due})
	require.NoError(t, err)
	b.tells(p, "ann assigned 0 in-app", "bob assigned 0 in-app")
	b.comes(task.TaskID)
	b.exec("UPDATE river_job SET state = 'available', scheduled_at = now() WHERE id = $1", old)
	waitFor(t, "the old chain to end", func() bool {
		return ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", old) == "completed"
	})
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM river_job WHERE kind = 'notice.deadline' AND state = 'scheduled'"))
	require.WithinDuration(t, time.Now().Add(30*time.Minute),
		ask[time.Time](b, "SELECT scheduled_at FROM river_job WHERE kind = 'notice.deadline' AND state = 'scheduled'"), 5*time.Minute, "half of the new time")

	_, err = b.Worklist.Complete(b.ctx, task.TaskID, asUI, "bob", nil, "")
	require.NoError(t, err)
	b.exec("UPDATE river_job SET state = 'available', scheduled_at = now() WHERE kind = 'notice.deadline' AND state = 'scheduled'")
	b.over()
	b.tells(p, "ann assigned 0 in-app", "bob assigned 0 in-app")
}

// An assignment that begins overdue has no deadline: nothing is escalated twice.
func TestOverdueFromTheStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{}
	b.notices(p)
	due := time.Now().Add(-time.Hour)
	task := b.open(Assignment{AssigneeID: "ann"}, func(req *Request) { req.DueDate = &due }, saying(func(c *ExecutionConfig) {
		c.Escalation = &Escalation{ReassignTo: &EscalationTarget{AssigneeID: "deputy"}}
	}))
	b.tells(p, "ann assigned 0 in-app")
	b.over()
	require.Equal(t, "ann", *b.get(task.TaskID).AssigneeID)
}
