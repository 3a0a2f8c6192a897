package jobs

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// Maintenance asks that lanes give nothing out, or that they go on. It is a state of
// the lanes beside River's pause: neither undoes the other.
type Maintenance struct {
	EventID string
	// At orders what was said about a lane: an older word changes nothing.
	At      time.Time
	Enabled bool
	Lanes   []string
	Until   *time.Time // nil: until somebody says so
	Reason  string
	By      string
}

// SetMaintenance notes it, for every process and beyond restarts, and wakes the lanes.
// It returns how many lanes had not heard a newer word.
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
