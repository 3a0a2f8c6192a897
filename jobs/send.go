package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// channelTime is the time of a channel before the next channel is tried: long enough for the five
// retries of the retry table, for a channel that fails or hangs.
const channelTime = 22 * time.Second

// sendTime bounds the job: failed tries of all channels, and the record of the outcome.
var sendTime = time.Duration(len(Channels))*channelTime + 10*time.Second

type sendArgs struct {
	TaskID   uuid.UUID `json:"task_id"`
	NoticeID int64     `json:"notice_id"`
}

func (sendArgs) Kind() string { return KindSend }

type sendWorker struct {
	river.WorkerDefaults[sendArgs]
	n *Notices
}

func (sendWorker) Timeout(*river.Job[sendArgs]) time.Duration { return sendTime }

func (w *sendWorker) NextRetry(job *river.Job[sendArgs]) time.Time {
	return w.n.tasks.clock.now().Add(noticeBackoff(job.Attempt))
}

// Work sends one notice. While no channel accepts the notice, the job is snoozed, until the notice is
// moot. A failed job would keep each failure in its row, and an outage may be long.
func (w *sendWorker) Work(ctx context.Context, job *river.Job[sendArgs]) error {
	t := w.n.tasks
	n, err := t.q.NoticeGet(ctx, job.Args.NoticeID)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("read a notice of task %s: %w", job.Args.TaskID, err)
	case n.Outcome != "waiting":
		return nil // it was settled as its process died
	case isMoot(n):
		return w.recordOutcome(ctx, n, db.NoticeSettleParams{Outcome: "moot"})
	case w.n.notifier == nil:
		return w.recordOutcome(ctx, n, db.NoticeSettleParams{Outcome: "off", Detail: "there is no Notification Service"})
	}

	// The definition's revision at the creation of the task decides about channels and template.
	s, err := t.settings(ctx, n.Type, taskDefinition(n.TenantID, n.OwnDefinition, n.DefinitionID, n.Revision), n.Config)
	if err != nil {
		return err
	}

	channel, why, again := w.send(ctx, n, s)
	why = redact.Text(why) // the Notification Service's words
	switch {
	case channel != "":
		return w.recordOutcome(ctx, n, db.NoticeSettleParams{Outcome: "sent", Channel: channel, Detail: why, Tried: 1})
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err() // the process stops; another one goes on
	case !again:
		t.cfg.Logger.Warn("every channel refused a notice", "task", n.TaskID, "what", n.What, "why", why)
		return w.recordOutcome(ctx, n, db.NoticeSettleParams{Outcome: "refused", Detail: why, Tried: 1})
	}

	// The pause depends on the notice's own tries: River does not count a snoozed attempt.
	wait := noticeBackoff(int(n.Tries) + 1)
	// One line for each notice, and not for each try: an outage may last for days.
	if n.Tries == 0 {
		t.cfg.Logger.Warn("a notice waits for the Notification Service", "task", n.TaskID, "what", n.What, "why", why, "again_in", wait)
	}

	if err := t.q.NoticeTried(context.WithoutCancel(ctx), db.NoticeTriedParams{NoticeID: n.NoticeID, Detail: why}); err != nil {
		return fmt.Errorf("record that a notice waits: %w", err)
	}

	return river.JobSnooze(wait)
}

// isMoot reports that the task has gone on without the notice. A person who no longer has the task is
// still told of the delay and of the escalation.
func isMoot(n db.NoticeGetRow) bool {
	switch n.What {
	case noticeOverdue, noticeEscalated:
		return !isOpen(n.Status)
	case noticeAssigned:
		return n.Status != db.TaskStatusASSIGNED || n.DeadlineNow == nil || *n.DeadlineNow != n.DeadlineID
	default:
		return !isOpen(n.Status) || n.DeadlineNow == nil || *n.DeadlineNow != n.DeadlineID
	}
}

// send tries the channels in the definition's order. It returns the channel that took the notice, the
// failures of the ones before, and whether to try again.
func (w *sendWorker) send(ctx context.Context, n db.NoticeGetRow, s *settings) (channel, why string, again bool) {
	channels, template := Channels[:1], "task-"+n.What
	if cfg := s.config.Notifications; cfg != nil {
		if len(cfg.Channels) > 0 {
			channels = cfg.Channels
		}
		if cfg.Template != "" {
			template = cfg.Template
		}
	}

	name := n.DefinitionID
	if s.def != nil {
		name = s.def.Name
	}

	due := timeOf(n.DueAt)
	var reasons []string
	for _, channel := range channels {
		one, cancel := context.WithTimeout(ctx, channelTime)
		// The same key at each try: the Notification Service knows a repeated notice by its key.
		notice := Notice{
			Key: fmt.Sprintf("notice-%d:%s", n.NoticeID, channel), Channel: channel, UserID: n.UserID, Template: template,
			Data: NoticeData{
				Event: n.What, TaskID: n.TaskID, TaskName: name, WorkflowID: n.WorkflowID, DueDate: &due,
				Priority: priorityOf(n.Priority), Percent: int(n.Percent),
			},
		}

		// A panic of the notifier is a failure of this channel only.
		err := isolated(func() error { return w.n.notifier.Notify(one, notice) })
		cancel()
		if err == nil {
			return channel, brief(reasons), false
		}

		var no *Failure
		// The notice is refused only if every channel has refused it for good.
		again = again || !errors.As(err, &no) || (no.Retryable != nil && *no.Retryable)
		reasons = append(reasons, channel+": "+err.Error())
	}

	return "", brief(reasons), again
}

// brief bounds a peer service's text before it is stored.
func brief(reasons []string) string {
	const most = 500
	// PostgreSQL stores neither NUL nor invalid UTF-8.
	all := strings.ToValidUTF8(strings.ReplaceAll(strings.Join(reasons, "; "), "\x00", ""), "")
	if r := []rune(all); len(r) > most {
		all = string(r[:most-1]) + "…"
	}
	return all
}

// recordOutcome stores the outcome even while the process stops: a sent notice must not be sent again.
func (w *sendWorker) recordOutcome(ctx context.Context, n db.NoticeGetRow, p db.NoticeSettleParams) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	p.NoticeID = n.NoticeID
	if err := w.n.tasks.q.NoticeSettle(ctx, p); err != nil {
		return fmt.Errorf("record the outcome of a notice: %w", err)
	}
	return nil
}
