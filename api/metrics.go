package api

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// metricsHandlers serve the metrics, which are over all tenants.
type metricsHandlers struct {
	tasks    *jobs.Tasks // for the clock's offset
	across   *db.Queries // not bound to a tenant: see core.read
	breakers func() []retry.Status
	refusals *refusals
}

// Metrics is the state of the tasks of all tenants.
type Metrics struct {
	GeneratedAt   time.Time       `json:"generatedAt"`
	Tasks         TaskCounts      `json:"tasks"`
	Lanes         []LaneDepth     `json:"lanes" doc:"The five queues."`
	Attempts      AttemptCounts   `json:"attempts" doc:"Totals since the database was created."`
	ExecutionTime ExecutionTimes  `json:"executionTime"`
	Throughput    Throughput      `json:"throughput"`
	Outbox        OutboxWaitCount `json:"outbox" doc:"Events that are not published yet."`
	Breakers      []Breaker       `json:"breakers" doc:"The circuit breakers of the responding process: one for each peer service, one for each channel of the Notification Service, and one for the bus. The breakers of callback hosts are only logged."`
	Inbound       []InboundCount  `json:"inbound" doc:"Outcomes of the messages consumed from the bus, since the database was created. Subjects without any message are missing."`
	Callbacks     CallbackCounts  `json:"callbacks" doc:"Status updates that are not delivered to callback URLs yet."`
	Refusals      RefusalCounts   `json:"refusals" doc:"Requests that the responding process has refused or could not answer since it started."`
	ClockOffset   int64           `json:"clockOffsetMs" doc:"The database's clock minus the responding process's clock, in milliseconds. The service uses the database's clock."`
}

// TaskCounts are the numbers of existing tasks.
type TaskCounts struct {
	ByStatus StatusCounts     `json:"byStatus"`
	ByType   TypeStatusCounts `json:"byType"`
}

// StatusCounts are numbers of tasks by status.
type StatusCounts struct {
	Pending   int64 `json:"PENDING"`
	Assigned  int64 `json:"ASSIGNED"`
	Running   int64 `json:"RUNNING"`
	Completed int64 `json:"COMPLETED"`
	Failed    int64 `json:"FAILED"`
	Cancelled int64 `json:"CANCELLED"`
	TimedOut  int64 `json:"TIMED_OUT"`
}

// TypeStatusCounts are numbers of tasks by type and status.
type TypeStatusCounts struct {
	Automated   StatusCounts `json:"AUTOMATED"`
	Integration StatusCounts `json:"INTEGRATION"`
	Manual      StatusCounts `json:"MANUAL"`
}

// LaneDepth is the depth of a queue.
type LaneDepth struct {
	Name     string `json:"name"`
	Depth    int64  `json:"depth" doc:"The number of waiting tasks. For task-execution-deadletter: tasks that ended as FAILED or TIMED_OUT and were neither redriven nor discarded."`
	OldestMs int64  `json:"oldestMs" doc:"The age of the oldest task that could run now, in milliseconds; 0 if there is none."`
}

// AttemptCounts are the outcomes of attempts.
type AttemptCounts struct {
	Started   int64 `json:"started"`
	Completed int64 `json:"completed"`
	Failed    int64 `json:"failed" doc:"Tasks that failed for good. Failed attempts that were retried count as retries."`
	TimedOut  int64 `json:"timedOut" doc:"Tasks that timed out for good."`
	Retries   int64 `json:"retries"`
	Released  int64 `json:"released" doc:"Attempts that were released without a failure."`
}

// ExecutionTimes are averages over completed tasks.
type ExecutionTimes struct {
	AverageMs TypeAverages `json:"averageMs"`
}

// TypeAverages are milliseconds by type; 0 for a type without completed tasks.
type TypeAverages struct {
	Automated   float64 `json:"AUTOMATED"`
	Integration float64 `json:"INTEGRATION"`
	Manual      float64 `json:"MANUAL"`
}

// Throughput is the recent work.
type Throughput struct {
	LastHour HourCounts  `json:"lastHour" doc:"The last 60 minutes: the current clock hour, and as much of the previous clock hour as fills the 60 minutes."`
	Hours    []HourCount `json:"hours" doc:"The last 24 clock hours, oldest first. The last one is the current hour."`
}

// HourCounts are transitions in an hour.
type HourCounts struct {
	Created   int64 `json:"created"`
	Completed int64 `json:"completed"`
	Failed    int64 `json:"failed"`
	Retried   int64 `json:"retried"`
}

// HourCount is one clock hour.
type HourCount struct {
	Hour time.Time `json:"hour" doc:"The start of the hour, in UTC."`
	HourCounts
}

// OutboxWaitCount is the number of unpublished events.
type OutboxWaitCount struct {
	Events   int64 `json:"events"`
	OldestMs int64 `json:"oldestMs" doc:"The age of the oldest event in milliseconds; 0 if there is none."`
}

// Breaker is the state of a circuit breaker.
type Breaker struct {
	Name  string    `json:"name" doc:"The name of the peer service, such as integration or notification/email, or bus."`
	State string    `json:"state" enum:"closed,half-open,open" doc:"closed: calls pass. open: no call passes. half-open: one trial call passes and decides."`
	Since time.Time `json:"since" doc:"The time of the last change of state."`
}

// InboundCount counts the outcomes of a subject's messages.
type InboundCount struct {
	Subject  string `json:"subject"`
	Acted    int64  `json:"acted" doc:"Messages that were handled."`
	Ignored  int64  `json:"ignored" doc:"Messages without effect: late, for other processes, or about an unknown task."`
	Repeated int64  `json:"repeated" doc:"Messages that had been handled before."`
	Dead     int64  `json:"dead" doc:"Messages that were moved to the dead-letter subject."`
}

// CallbackCounts are undelivered status updates.
type CallbackCounts struct {
	Waiting  int64 `json:"waiting" doc:"The number of tasks with undelivered updates, counted up to 10,000."`
	OldestMs int64 `json:"oldestMs" doc:"The age of the oldest undelivered update in milliseconds; 0 if there is none."`
	GivenUp  int64 `json:"givenUp" doc:"The number of updates that were given up, counted up to 10,000."`
}

// RefusalCounts are requests without a proper response.
type RefusalCounts struct {
	RateLimited  int64 `json:"rateLimited" doc:"Requests over a caller's rate limit: 429."`
	FailedTokens int64 `json:"failedTokens" doc:"Requests whose token was not verified because their address had sent too many invalid tokens: 429."`
	ClientsGone  int64 `json:"clientsGone" doc:"Requests whose client disconnected before the response was written."`
	SlowReaders  int64 `json:"slowReaders" doc:"Requests whose client read the response too slowly and was disconnected."`
}

type metricsOutput struct{ Body *Metrics }

var getTaskMetricsDoc = doc{
	id: "getTaskMetrics", tag: tagMetrics, summary: "Get task metrics",
	description: "Returns the number of tasks by status, the depth of the queues, the outcomes of attempts, and the totals of the last 24 " +
		"hours, over all tenants. The cost of the request does not depend on the number of tasks.",
}

const shownHours = 24

func (h *metricsHandlers) getTaskMetrics(ctx context.Context, _ *struct{}) (*metricsOutput, error) {
	// The hours of the tally are the database's. A difference of clocks only shifts the window.
	now := time.Now().UTC()
	hours := now.Truncate(time.Hour).Add(-(shownHours - 1) * time.Hour)
	tally, err := h.across.TallyRead(ctx)
	if err != nil {
		return nil, readFailed("read the tally", err)
	}

	waiting, err := h.across.LaneWaiting(ctx, jobs.Lanes)
	if err != nil {
		return nil, readFailed("read the lanes", err)
	}

	done, err := h.across.TallyHours(ctx, hours)
	if err != nil {
		return nil, readFailed("read the hours", err)
	}

	backlog, err := h.across.OutboxBacklog(ctx)
	if err != nil {
		return nil, readFailed("read the outbox's backlog", err)
	}

	inbound, err := h.across.InboundRead(ctx)
	if err != nil {
		return nil, readFailed("read the counts of consumed messages", err)
	}

	callbacks, err := h.across.CallbackBacklog(ctx)
	if err != nil {
		return nil, readFailed("read the callbacks", err)
	}

	m := &Metrics{
		GeneratedAt: now.Truncate(time.Millisecond), Throughput: throughput(hours, now, done),
		Outbox:    OutboxWaitCount{Events: backlog.Events, OldestMs: backlog.OldestMs},
		Callbacks: CallbackCounts(callbacks),
		Breakers:  []Breaker{}, ClockOffset: h.tasks.ClockOffset().Milliseconds(),
		Refusals: RefusalCounts{
			RateLimited: h.refusals.limited.Load(), FailedTokens: h.refusals.failed.Load(),
			ClientsGone: h.refusals.gone.Load(), SlowReaders: h.refusals.slow.Load(),
		},
	}

	for _, b := range h.breakers() {
		m.Breakers = append(m.Breakers, Breaker{Name: b.Name, State: string(b.State), Since: b.Since.UTC().Truncate(time.Millisecond)})
	}

	m.count(tally, waiting)
	// Never nil: an empty list is [] in JSON.
	m.Inbound = make([]InboundCount, len(inbound))
	for i, row := range inbound {
		m.Inbound[i] = InboundCount(row)
	}

	return &metricsOutput{m}, nil
}

// count computes the current numbers from the totals of all transitions: transitions into a status,
// minus transitions out of it.
func (m *Metrics) count(tally []db.TallyReadRow, waiting []db.LaneWaitingRow) {
	depth := map[string]int64{}
	discarded := int64(0)
	for _, t := range tally {
		kind := m.Tasks.ByType.of(t.Type)
		*m.Tasks.ByStatus.of(t.Now) += t.N
		*kind.of(t.Now) += t.N
		if t.Was != nil {
			*m.Tasks.ByStatus.of(*t.Was) -= t.N
			*kind.of(*t.Was) -= t.N
			if *t.Was == db.TaskStatusPENDING {
				// The queue before the transition.
				depth[string(t.Lane)] -= t.N
			}
		}

		if t.Now == db.TaskStatusPENDING {
			depth[landing(t)] += t.N
		}
		// Only a discard leaves a final status unchanged.
		if t.Was != nil && *t.Was == t.Now && jobs.Status(t.Now).Terminal() {
			discarded += t.N
		}
		m.Attempts.count(t)
	}

	// Dead letters are not waiting jobs, so their number follows from statuses.
	depth[jobs.LaneDeadLetter] = m.Tasks.ByStatus.Failed + m.Tasks.ByStatus.TimedOut - discarded
	oldest := map[string]int64{}
	for _, w := range waiting {
		oldest[w.Lane] = max(w.OldestMs, 0)
	}

	for _, lane := range jobs.Lanes {
		m.Lanes = append(m.Lanes, LaneDepth{Name: lane, Depth: depth[lane], OldestMs: oldest[lane]})
	}

	m.ExecutionTime.AverageMs = averages(tally)
}

// landing is the queue after a transition to PENDING.
func landing(t db.TallyReadRow) string {
	if t.Event == db.TaskEventTypeRetry {
		return jobs.LaneRetry
	}

	switch t.Type {
	case db.TaskTypeINTEGRATION:
		return jobs.LaneIntegration
	case db.TaskTypeMANUAL:
		return jobs.LaneManual
	}
	return jobs.LaneAutomated
}

func (c *AttemptCounts) count(t db.TallyReadRow) {
	// From RUNNING, the start was counted by an event of its own.
	running := t.Was != nil && *t.Was == db.TaskStatusRUNNING
	switch t.Event {
	case db.TaskEventTypeStarted:
		c.Started += t.N
	case db.TaskEventTypeCompleted:
		c.Completed += t.N
		if !running {
			// The attempt started and ended in one transition.
			c.Started += t.N
		}
	case db.TaskEventTypeFailed:
		if t.Now == db.TaskStatusTIMEDOUT {
			c.TimedOut += t.N
		} else {
			c.Failed += t.N
		}

		if !running {
			c.Started += t.N
		}
	case db.TaskEventTypeRetry:
		c.Retries += t.N
	case db.TaskEventTypeReleased:
		// An undone redrive and a discard are no attempts.
		if running {
			c.Released += t.N
		}
	}
}

func averages(tally []db.TallyReadRow) (out TypeAverages) {
	for kind, average := range map[db.TaskType]*float64{
		db.TaskTypeAUTOMATED: &out.Automated, db.TaskTypeINTEGRATION: &out.Integration, db.TaskTypeMANUAL: &out.Manual,
	} {
		var n, ms int64
		for _, t := range tally {
			if t.Type == kind && t.Now == db.TaskStatusCOMPLETED {
				n, ms = n+t.N, ms+t.RunMs
			}
		}

		if n > 0 {
			*average = float64(ms) / float64(n)
		}
	}

	return out
}

// throughput includes the hours without any transition.
func throughput(from, now time.Time, rows []db.TallyHoursRow) Throughput {
	t := Throughput{Hours: make([]HourCount, shownHours)}
	for i := range t.Hours {
		t.Hours[i].Hour = from.Add(time.Duration(i) * time.Hour)
	}

	for _, row := range rows {
		i := int(row.Hour.Sub(from) / time.Hour)
		if i < 0 || i >= shownHours {
			// A new hour began after the clock was read.
			continue
		}
		h := &t.Hours[i]
		h.Created += row.Created
		h.Completed += row.Completed
		h.Failed += row.Failed
		h.Retried += row.Retried
	}

	before, current := t.Hours[shownHours-2].HourCounts, t.Hours[shownHours-1].HourCounts
	// The previous hour is assumed to be uniform.
	share := 1 - now.Sub(now.Truncate(time.Hour)).Seconds()/3600
	part := func(n int64) int64 { return int64(float64(n)*share + 0.5) }
	t.LastHour = HourCounts{
		Created: current.Created + part(before.Created), Completed: current.Completed + part(before.Completed),
		Failed: current.Failed + part(before.Failed), Retried: current.Retried + part(before.Retried),
	}

	return t
}

func (s *StatusCounts) of(status db.TaskStatus) *int64 {
	switch status {
	case db.TaskStatusPENDING:
		return &s.Pending
	case db.TaskStatusASSIGNED:
		return &s.Assigned
	case db.TaskStatusRUNNING:
		return &s.Running
	case db.TaskStatusCOMPLETED:
		return &s.Completed
	case db.TaskStatusFAILED:
		return &s.Failed
	case db.TaskStatusCANCELLED:
		return &s.Cancelled
	default:
		return &s.TimedOut
	}
}

func (s *TypeStatusCounts) of(kind db.TaskType) *StatusCounts {
	switch kind {
	case db.TaskTypeINTEGRATION:
		return &s.Integration
	case db.TaskTypeMANUAL:
		return &s.Manual
	default:
		return &s.Automated
	}
}
