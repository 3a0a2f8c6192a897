package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// post stands where the Notification Service is called; package peer has the real one,
// and api/notice_test.go has both.
type post struct {
	mu   sync.Mutex
	sent []Notice             // guarded by mu
	down map[string]error     // by channel; guarded by mu
	held chan struct{}        // not nil: who comes waits for it
	came chan context.Context // who waits
}

func (p *post) Notify(ctx context.Context, n Notice) error {
	if p.held != nil {
		p.came <- ctx
		select {
		case <-p.held:
		case <-ctx.Done():
			return &Outage{PeerService: "notification", Err: ctx.Err()}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.down[n.Channel]; err != nil {
		return err
	}
	p.sent = append(p.sent, n)
	return nil
}

func (p *post) steer(down map[string]error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// told lists what was sent, as "user event percent channel".
func (p *post) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []string{}
	for _, n := range p.sent {
		out = append(out, fmt.Sprintf("%s %s %d %s", n.UserID, n.Data.Event, n.Data.Percent, n.Channel))
	}
	return out
}

// notices lets this process tell people, until the test ends or stop is called.
func (b *testBundle) notices(notifier Notifier) (stop func()) {
	b.t.Helper()
	pool, err := pgpool.Open(b.ctx, dbtest.URL(b.pool), pgpool.Config{Name: "river", MaxConns: 4, Custom: true})
	require.NoError(b.t, err)
	client, err := NewRiver(pool, b.ProcessID(), b.cfg.Logger, NewNotices(b.Tasks, notifier))
	require.NoError(b.t, err)
	require.NoError(b.t, client.Start(context.WithoutCancel(b.ctx)))
	stop = sync.OnceFunc(func() {
		require.NoError(b.t, client.Stop(context.WithoutCancel(b.ctx)))
		pool.Close()
	})
	b.t.Cleanup(stop)
	return stop
}

// saying makes a manual task that is told in some way.
func saying(change func(*ExecutionConfig)) func(*Request) {
	return func(req *Request) { change(&req.Config.ExecutionConfig) }
}

func byChannels(channels ...string) func(*Request) {
	return saying(func(c *ExecutionConfig) { c.Notifications = &Notifications{Channels: channels} })
}

// pass lets so many hundredths of the time to the due date be over, and what is due
// then be due now.
func (b *testBundle) pass(id uuid.UUID, percent int) {
	b.t.Helper()
	b.comes(id)
	const hours = 100
	b.exec("UPDATE task SET assigned_at = now() - make_interval(hours => $2), due_at = now() + make_interval(hours => $3) WHERE task_id = $1",
		id, percent*hours/100, hours-percent*hours/100)
	b.exec(`UPDATE river_job SET state = 'available', scheduled_at = now()
		WHERE kind = 'notice.deadline' AND state IN ('available', 'scheduled') AND args ->> 'task_id' = $1::text`, id)
}

// comes waits until the task's chain has its next step to come.
func (b *testBundle) comes(id uuid.UUID) int {
	b.t.Helper()
	var percent *int
	waitFor(b.t, "the next step", func() bool {
		percent = ask[*int](b, `SELECT max((j.args ->> 'percent')::integer) FROM river_job j JOIN task t ON t.deadline_id = (j.args ->> 'deadline_id')::bigint
			WHERE j.kind = 'notice.deadline' AND j.state = 'scheduled' AND t.task_id = $1`, id)
		return percent != nil
	})
	return *percent
}

func (b *testBundle) tells(p *post, want ...string) {
	b.t.Helper()
	waitFor(b.t, fmt.Sprintf("%q to be told", want), func() bool { return len(p.told()) >= len(want) })
	require.ElementsMatch(b.t, want, p.told())
}

// over waits until no job about people is there any more, but those of later.
func (b *testBundle) over() {
	b.t.Helper()
	waitFor(b.t, "all to be told", func() bool {
		return ask[int](b, `SELECT count(*) FROM river_job WHERE queue = 'task-notices' AND kind <> 'notice.forget'
			AND (state IN ('available', 'running', 'retryable') OR (state = 'scheduled' AND scheduled_at < now() + interval '10 min'))`) == 0
	})
}

func TestWhoGetsATaskIsTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b, func(d *Definition) {
		d.Type, d.RetryPolicy = Manual, nil
		d.ExecutionConfig = ExecutionConfig{Notifications: &Notifications{Channels: []string{"email"}, Template: "to-do"}}
	})
	ann := b.open(Assignment{AssigneeID: "ann"}, of("calculate"))
	named := b.open(Assignment{CandidateUsers: []string{"bob", "eve"}, CandidateGroups: []string{"g"}})
	b.open(Assignment{GroupID: "crew"})
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM river_job WHERE kind = 'notice.deadline' AND state = 'available'"), "in the move's own commit")

	p := &post{}
	b.notices(p)
	b.tells(p, "ann assigned 0 email", "bob assigned 0 in-app", "eve assigned 0 in-app")
	b.over()
	for _, n := range p.sent {
		if n.UserID != "ann" {
			require.Equal(t, "task-assigned", n.Template)
			require.Equal(t, named.TaskID, n.Data.TaskID)
			continue
		}
		require.Equal(t, "to-do", n.Template)
		id := ask[int64](b, "SELECT notice_id FROM report.notice WHERE task_id = $1", ann.TaskID)
		require.Equal(t, fmt.Sprintf("notice-%d:email", id), n.Key)
		text, err := json.Marshal(n.Data)
		require.NoError(t, err)
		due, err := ann.DueAt.UTC().MarshalText()
		require.NoError(t, err)
		require.JSONEq(t, fmt.Sprintf(`{"event": "assigned", "taskId": %q, "taskName": "Calculate", "workflowId": "wf-1",
			"dueDate": %q, "priority": "MEDIUM", "percent": 0}`, ann.TaskID, due), string(text))
	}
	require.Equal(t, "sent 1", ask[string](b, "SELECT outcome || ' ' || tries FROM report.notice WHERE task_id = $1 AND settled_at IS NOT NULL", ann.TaskID))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE queue = 'task-notices' AND (args::text ~ 'ann|bob|eve' OR metadata::text ~ 'ann|bob|eve')"), "jobs name nobody")
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM river_job WHERE kind = 'notice.deadline' AND state = 'scheduled' AND args ->> 'percent' = '50'"))
}

// The contract's row: "Notification Service: use alternative notification channels".
func TestChannelsInTheOrderOfTheDefinition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	away := &Outage{PeerService: "notification", Err: errors.New("503")}
	p := &post{down: map[string]error{"chat": away, "push": &Failure{Code: "NO_DEVICE", Message: "she has none"}}}
	b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"}, byChannels("chat", "push", "email"))
	b.tells(p, "ann assigned 0 email")
	b.over()
	require.Equal(t, "email sent 1: chat: notification is away: 503; push: NO_DEVICE: she has none", ask[string](b,
		"SELECT format('%s %s %s: %s', channel, outcome, tries, detail) FROM report.notice WHERE task_id = $1", task.TaskID))
}

func TestANoticeThatNoChannelTakesIsRetried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	away := &Outage{PeerService: "notification", Err: errors.New("503")}
	p := &post{down: map[string]error{"chat": away, "email": away}}
	stop := b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"}, byChannels("chat", "email"))
	waitFor(t, "a try in vain", func() bool {
		return ask[int](b, "SELECT count(*) FROM report.notice WHERE outcome = 'waiting' AND tries > 0 AND detail LIKE 'chat: %; email: %'") == 1
	})
	stop() // it is there for the next process
	p.steer(nil)
	join(t, b.pool, "p2").notices(p)
	b.tells(p, "ann assigned 0 chat")
	b.over()
	b.tells(p, "ann assigned 0 chat")
	require.Equal(t, "sent", ask[string](b, "SELECT outcome FROM notice WHERE task_id = $1", task.TaskID))
	require.True(t, b.log.says("a notice waits for the Notification Service"))
}

func TestANoticeThatEveryChannelRefusesIsNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	no := false
	p := &post{down: map[string]error{"in-app": &Failure{Code: "NOT_FOUND", Message: "no such user", Retryable: &no}}}
	b.notices(p)
	task := b.open(Assignment{AssigneeID: "ann"})
	waitFor(t, "it to be given up", func() bool {
		return ask[int](b, "SELECT count(*) FROM report.notice WHERE outcome = 'refused' AND detail = 'in-app: NOT_FOUND: no such user'") == 1
	})
	require.Equal(t, 50, b.comes(task.TaskID), "the chain goes on")
}

// rude does not return from its first notices, as many as River has places for; it
// returns from the others.
type rude struct {
	post
	left atomic.Int32
}

func (r *rude) Notify(ctx context.Context, n Notice) error {
	if r.left.Add(-1) >= 0 {
		runtime.Goexit()
	}
	return r.post.Notify(ctx, n)
}

// River frees a worker's place when Work returns, and never after runtime.Goexit.
func TestANotifierThatDoesNotReturnKeepsNoPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &rude{}
	p.left.Store(noticeSlots)
	b.notices(p)
	b.work(assigning("ann"))
	for range noticeSlots {
		b.create(manual)
	}
	waitFor(t, "them to be given up", func() bool {
		return ask[int](b, "SELECT count(*) FROM report.notice WHERE outcome = 'refused' AND detail LIKE 'in-app: GOEXIT: %'") == noticeSlots
	})
	b.create(manual)
	waitFor(t, "the next to be sent", func() bool { return len(p.told()) == 1 })
}

func TestANoticeIsMootOnceTheTaskHasGoneOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &post{down: map[string]error{"in-app": &Outage{PeerService: "notification", Err: errors.New("503")}}}
	b.notices(p)
	done, moved := b.open(Assignment{AssigneeID: "ann"}), b.open(Assignment{AssigneeID: "ann"})
	waitFor(t, "tries in vain", func() bool { return ask[int](b, "SELECT count(*) FROM notice WHERE tries > 0") == 2 })
	_, err := b.Worklist.Complete(b.ctx, done.TaskID, asUI, "ann", nil, "")
	require.NoError(t, err)
	_, err = b.Worklist.Reassign(b.ctx, moved.TaskID, asUI, Reassignment{GroupID: "crew"})
	require.NoError(t, err)
	b.exec("UPDATE river_job SET scheduled_at = now() WHERE kind = 'notice.send' AND state = 'available'")
	waitFor(t, "them to be moot", func() bool { return ask[int](b, "SELECT count(*) FROM notice WHERE outcome = 'moot'") == 2 })
	require.Empty(t, p.told())
}

func TestWithoutANotificationService(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.notices(nil)
	task := b.open(Assignment{AssigneeID: "ann"})
	waitFor(t, "it to be written down", func() bool {
		return ask[int](b, "SELECT count(*) FROM report.notice WHERE outcome = 'off' AND tries = 0 AND detail <> ''") == 1
	})
	require.Equal(t, 50, b.comes(task.TaskID))
	require.True(t, b.log.says("there is no Notification Service"))
}

// What is being sent when the process stops is sent by the next one.
func TestStopLeavesANoticeToAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stuck := &post{held: make(chan struct{}), came: make(chan context.Context, 9)}
	stop := b.notices(stuck)
	b.open(Assignment{AssigneeID: "ann"})
	receive(t, stuck.came)
	stop()
	p := &post{}
	join(t, b.pool, "p2").notices(p)
	b.tells(p, "ann assigned 0 in-app")
	require.Empty(t, stuck.told())
}

// What a process was at when it was killed is done by another, some minutes later.
func TestWhatAKilledProcessHeldIsDoneByAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, age := range []string{"3 minutes", "90 seconds"} {
		b.open(Assignment{AssigneeID: age})
		b.exec(`UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - $1::interval, attempted_by = '{gone}'
			WHERE kind = 'notice.deadline' AND state = 'available'`, age)
	}
	p := &post{}
	b.notices(p)
	b.tells(p, "3 minutes assigned 0 in-app")
}

func TestOldNoticesAreForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for id, age := range map[int]string{1: "31 days", 2: "29 days"} {
		b.exec(`INSERT INTO notice (notice_id, task_id, deadline_id, percent, what, user_id, outcome, settled_at)
			VALUES ($1, $2, 1, 0, 'assigned', 'ann', 'moot', now() - $3::interval)`, id, uuid.New(), age)
	}
	b.exec(`INSERT INTO notice (notice_id, task_id, deadline_id, percent, what, user_id, at)
		VALUES (3, $1, 1, 0, 'assigned', 'ann', now() - interval '1 year')`, uuid.New())
	n, err := b.q.NoticeForget(b.ctx, noticesKept.Seconds())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM notice"))
}

// The table's retries, at their slowest, end before a channel's time does, and all
// channels before the job's.
func TestAChannelGetsAllRetries(t *testing.T) {
	t.Parallel()
	const request = 2 * time.Second // that of api/peer
	p := retry.ServiceCalls
	longest := request
	for n := range p.Retries {
		longest += request + time.Duration(float64(p.Pause(n+1))*(1+p.Jitter))
	}
	require.Less(t, longest, channelTime)
	require.Less(t, time.Duration(len(Channels))*channelTime, sendTime)
	require.Less(t, sendTime, rescueAfter)
}
