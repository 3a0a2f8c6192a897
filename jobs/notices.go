package jobs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"github.com/seed-3f7a0631/tes/db"
)

// The jobs by which people are told of their tasks. They are River's to work, unlike
// those of the lanes, and hold the task's id and no name of anybody:
//
//	notice.deadline     a step of an assignment's chain: at 0, 50, 75, 90 and 100 % of
//	                    the time to its due date. Leaves notices, and the next step
//	notice.escalation   gives a task whose due date has passed to somebody else
//	notice.send         sends one notice to one person
//	notice.forget       drops old notices, hourly
const (
	KindDeadline   = "notice.deadline"
	KindEscalation = "notice.escalation"
	KindSend       = "notice.send"
	KindForget     = "notice.forget"
)

// NoticeKinds lists them.
var NoticeKinds = []string{KindDeadline, KindEscalation, KindSend, KindForget}

// queueNotices is a queue beside the lanes: a lane that is paused says nothing of
// whether people are reminded.
const queueNotices = "task-notices"

// Notifier is the Notification Service.
type Notifier interface {
	// Notify tells one person by one channel.
	Notify(ctx context.Context, n Notice) error
}

// Notice is what one person is told by one channel.
type Notice struct {
	Key      string // the same, whenever this is tried again
	Channel  string
	UserID   string
	Template string
	Data     NoticeData
}

// NoticeData is what a notice may say: never what the task is about.
type NoticeData struct {
	Event      string     `json:"event"` // assigned, reminder, overdue, escalated
	TaskID     uuid.UUID  `json:"taskId"`
	TaskName   string     `json:"taskName"`
	WorkflowID string     `json:"workflowId"`
	DueDate    *time.Time `json:"dueDate"`
	Priority   Priority   `json:"priority"`
	Percent    int        `json:"percent"` // of the time to the due date that is over
}

// The events of a notice, as the table has them.
const (
	noticeAssigned  = "assigned"
	noticeReminder  = "reminder"
	noticeOverdue   = "overdue"
	noticeEscalated = "escalated"
)

// Notices works the jobs of the kinds above.
type Notices struct {
	tasks    *Tasks
	notifier Notifier
}

// NewNotices makes a process's part in telling people. Without a notifier nobody is
// told; that is recorded for each notice, and tasks are escalated all the same.
func NewNotices(tasks *Tasks, notifier Notifier) *Notices {
	if notifier == nil {
		tasks.cfg.Logger.Warn("there is no Notification Service: people are not told of their tasks")
	}
	return &Notices{tasks: tasks, notifier: notifier}
}

// noticeTime bounds one job, but for those that send: see sendTime. What a killed process
// had in its hands is taken for lost after rescueAfter, so that must be longer than both.
const (
	noticeTime  = 30 * time.Second
	rescueAfter = 2 * time.Minute
)

// noticePlaces is how many jobs of the queue a process works at once.
const noticePlaces = 32

// noticesKept is for how long it is known who was told what.
const noticesKept = 30 * 24 * time.Hour

// register adds the workers, and what is to be done each hour.
func (n *Notices) register(workers *river.Workers, cfg *river.Config) {
	river.AddWorker(workers, &deadlineWorker{n: n})
	river.AddWorker(workers, &escalationWorker{n: n})
	river.AddWorker(workers, &sendWorker{n: n})
	river.AddWorker(workers, &forgetWorker{n: n})
	// A poll is one probe of an index. Jobs come by SQL of ours, which wakes nobody.
	cfg.Queues[queueNotices] = river.QueueConfig{MaxWorkers: noticePlaces, FetchPollInterval: 200 * time.Millisecond}
	cfg.PeriodicJobs = append(cfg.PeriodicJobs, river.NewPeriodicJob(river.PeriodicInterval(time.Hour),
		func() (river.JobArgs, *river.InsertOpts) { return forgetArgs{}, nil }, nil))
}

type forgetArgs struct{}

func (forgetArgs) Kind() string { return KindForget }

func (forgetArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueNotices, Priority: 4}
}

type forgetWorker struct {
	river.WorkerDefaults[forgetArgs]
	n *Notices
}

func (forgetWorker) Timeout(*river.Job[forgetArgs]) time.Duration { return noticeTime }

func (w *forgetWorker) Work(ctx context.Context, _ *river.Job[forgetArgs]) error {
	if _, err := w.n.tasks.q.NoticeForget(ctx, noticesKept.Seconds()); err != nil {
		return fmt.Errorf("forget old notices: %w", err)
	}
	return nil
}

// patiently is how long to wait after so many tries in vain: 1 s, 2 s, 4 s … 10 min.
func patiently(tries int) time.Duration {
	d := min(time.Second<<min(max(tries-1, 0), 10), 10*time.Minute)
	return d - time.Duration(rand.Int64N(int64(d/10)))
}

// ours reports whether the task is still the one whom this chain is about.
func ours(task db.DeadlineTaskRow, chain int64) bool {
	return open(task.Status) && task.DeadlineID != nil && *task.DeadlineID == chain
}

// open: somebody has it to do.
func open(s db.TaskStatus) bool { return s == db.TaskStatusASSIGNED || s == db.TaskStatusRUNNING }
