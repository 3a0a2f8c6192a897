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

// The notice jobs remind people of their tasks. River works these jobs, unlike the jobs of tasks. A
// notice job has the id of the task, and no name of a person:
//
//	notice.deadline     a step of an assignment's chain: at 0, 50, 75, 90 and 100 % of
//	                    the time to its due date. Leaves notices, and the next step
//	notice.escalation   assigns a task to another person or group after its due date
//	notice.send         sends one notice to one person
//	notice.forget       drops old notices, hourly
const (
	KindDeadline   = "notice.deadline"
	KindEscalation = "notice.escalation"
	KindSend       = "notice.send"
	KindForget     = "notice.forget"
)

// NoticeKinds lists the kinds.
var NoticeKinds = []string{KindDeadline, KindEscalation, KindSend, KindForget}

// queueNotices is a queue of its own: pausing a queue of tasks does not stop reminders.
const queueNotices = "task-notices"

// Notifier is the Notification Service.
type Notifier interface {
	// Notify sends a notice to a person by one channel.
	Notify(ctx context.Context, n Notice) error
}

// Notice is a message for one person by one channel.
type Notice struct {
	Key      string // the same, whenever this is tried again
	Channel  string
	UserID   string
	Template string
	Data     NoticeData
}

// NoticeData is the content of a notice: never the content of the task.
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

// Notices works the jobs of NoticeKinds.
type Notices struct {
	tasks    *Tasks
	notifier Notifier
}

// NewNotices returns the part of a process that sends notices. Without a notifier no notice is sent:
// each is recorded as off, and tasks are escalated nevertheless.
func NewNotices(tasks *Tasks, notifier Notifier) *Notices {
	if notifier == nil {
		tasks.cfg.Logger.Warn("there is no Notification Service: people are not told of their tasks")
	}
	return &Notices{tasks: tasks, notifier: notifier}
}

// noticeTime bounds a job, except one that sends: see sendTime. rescueAfter, after which the jobs of
// a killed process count as lost, must be longer than both.
const (
	noticeTime  = 30 * time.Second
	rescueAfter = 2 * time.Minute
)

// noticeSlots is the number of jobs of the queue that a process works at once.
const noticeSlots = 32

// noticesKept is how long the record of sent notices is kept.
const noticesKept = 30 * 24 * time.Hour

// register adds the workers and the hourly job.
func (n *Notices) register(workers *river.Workers, cfg *river.Config) {
	river.AddWorker(workers, &deadlineWorker{n: n})
	river.AddWorker(workers, &escalationWorker{n: n})
	river.AddWorker(workers, &sendWorker{n: n})
	river.AddWorker(workers, &forgetWorker{n: n})
	// A poll is one index probe. tes inserts these jobs by its own SQL, which notifies no River client.
	cfg.Queues[queueNotices] = river.QueueConfig{MaxWorkers: noticeSlots, FetchPollInterval: 200 * time.Millisecond}
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

// noticeBackoff is the pause after the n-th failure: 1 s, 2 s, 4 s … 10 min.
func noticeBackoff(tries int) time.Duration {
	d := min(time.Second<<min(max(tries-1, 0), 10), 10*time.Minute)
	// Up to a tenth less, so that the notices of one outage do not come back together.
	return d - time.Duration(rand.Int64N(int64(d/10)))
}

// isCurrentChain reports whether chain is the present chain of notice jobs of an open task.
func isCurrentChain(task db.DeadlineTaskRow, chain int64) bool {
	return isOpen(task.Status) && task.DeadlineID != nil && *task.DeadlineID == chain
}

// isOpen reports whether a person still has to do the task.
func isOpen(s db.TaskStatus) bool { return s == db.TaskStatusASSIGNED || s == db.TaskStatusRUNNING }
