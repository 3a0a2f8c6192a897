package jobs

import "slices"

// Status is the status of a task. The last four are terminal.
type Status string

// The seven states of a task.
const (
	Pending   Status = "PENDING"
	Assigned  Status = "ASSIGNED"
	Running   Status = "RUNNING"
	Completed Status = "COMPLETED"
	Failed    Status = "FAILED"
	Cancelled Status = "CANCELLED"
	TimedOut  Status = "TIMED_OUT"
)

// Statuses lists every status, in the order of the enum in SQL.
var Statuses = []Status{Pending, Assigned, Running, Completed, Failed, Cancelled, TimedOut}

// Terminal reports whether only a redrive can follow.
func (s Status) Terminal() bool {
	return s == Completed || s == Failed || s == Cancelled || s == TimedOut
}

// Type is the type of a task.
type Type string

// The three types: code, another system, a person.
const (
	Automated   Type = "AUTOMATED"
	Integration Type = "INTEGRATION"
	Manual      Type = "MANUAL"
)

// Priority orders the tasks of a queue.
type Priority string

// The four priorities; River knows them as 1 (critical) to 4 (low).
const (
	Low      Priority = "LOW"
	Medium   Priority = "MEDIUM"
	High     Priority = "HIGH"
	Critical Priority = "CRITICAL"
)

// Rank is River's number for the priority: 1 is worked first.
func (p Priority) Rank() int16 {
	switch p {
	case Critical:
		return 1
	case High:
		return 2
	case Low:
		return 4
	default:
		return 3
	}
}

// legalNext holds every legal step. The table task_move says the same to the
// database; a test proves the two equal. FAILED and TIMED_OUT go back to
// PENDING by a redrive only.
var legalNext = map[Status][]Status{
	Pending:   {Running, Assigned, Cancelled, TimedOut, Failed},
	Assigned:  {Assigned, Running, Completed, Failed, Cancelled, TimedOut},
	Running:   {Completed, Failed, TimedOut, Cancelled, Pending, Assigned},
	Failed:    {Pending},
	TimedOut:  {Pending},
	Completed: nil,
	Cancelled: nil,
}

// Legal lists where a task in status s may go next.
func Legal(s Status) []Status { return slices.Clone(legalNext[s]) }
