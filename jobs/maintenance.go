package jobs

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// Maintenance begins or ends the maintenance of queues, in which no process takes jobs from them.
// Maintenance is independent of the pauses of River: neither ends the other.
type Maintenance struct {
	EventID string
	// At orders the requests for a queue: an older request changes nothing.
	At      time.Time
	Enabled bool
	Lanes   []string
	Until   *time.Time // nil: until somebody says so
	Reason  string
	By      string
}

// SetMaintenance stores the maintenance, for every process and beyond restarts, and wakes the queues.
// changed is the number of queues without a newer request.
func (o *Operators) SetMaintenance(ctx context.Context, m Maintenance) (changed int, err error) {
	until, err := timeAt("/until", m.Until)
	if err != nil {
		return 0, err
	}

	rows, err := o.t.q.MaintenanceSet(ctx, db.MaintenanceSetParams{
		EventID: m.EventID, Lanes: m.Lanes, Enabled: m.Enabled, Until: until, Reason: m.Reason, Actor: m.By, SaidAt: m.At,
	})
	if err != nil {
		return 0, readError("maintenance", err)
	}

	o.t.notifier.notify(ctx, channelLane, KindWorker) // the parked dequeues, which no lane's name wakes
	return len(rows), nil
}
