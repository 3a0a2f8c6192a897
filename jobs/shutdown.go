package jobs

import (
	"context"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// ShutdownOrder asks processes to stop.
type ShutdownOrder struct {
	EventID string
	At      time.Time // processes that started later ignore the order
	Target  string    // a service, a process, or where it runs; empty: all
	Grace   *time.Duration
	Reason  string
	By      string
}

// serviceNames are the names of the whole service.
var serviceNames = []string{"", "task-execution-service", "task-execution-layer", "tes"}

// concerns reports whether an order is for a process: Target is a name of the service, the name of the
// process, or the beginning of this name (host, or host and pid).
func (o *ShutdownOrder) concerns(process string) bool {
	for _, name := range serviceNames {
		if o.Target == name {
			return true
		}
	}
	return process == o.Target || strings.HasPrefix(process, o.Target+"/")
}

// OrderShutdown passes an order to every process. A running process calls its Config.Shutdown if the
// order concerns the process. ours reports whether there is such a process. A process without the
// notification reads the order when it listens again.
func (ops *Operators) OrderShutdown(ctx context.Context, o ShutdownOrder) (ours bool, err error) {
	live, err := ops.t.q.ExecutorsLive(ctx, Silence.Seconds())
	if err != nil {
		return false, readError("processes", err)
	}

	for _, process := range live {
		ours = ours || o.concerns(process)
	}

	if !ours {
		return false, nil
	}

	p := db.ShutdownPutParams{EventID: o.EventID, SaidAt: o.At, Target: o.Target, Reason: o.Reason, Actor: o.By}
	if o.Grace != nil {
		seconds := o.Grace.Seconds()
		p.GraceSeconds = &seconds
	}

	// The row is written before the notification is sent, in one commit. Repeated with the same event, the
	// order has no effect.
	if err := ops.t.q.ShutdownPut(ctx, p); err != nil {
		return false, readError("shutdown order", err)
	}

	return true, nil
}

// applyShutdownOrders applies the orders given since this process has started.
func (r *Runner) applyShutdownOrders(ctx context.Context) error {
	rows, err := r.tasks.q.ShutdownOrders(ctx, r.tasks.cfg.ProcessID)
	if err != nil {
		return readError("shutdown orders", err)
	}

	for _, row := range rows {
		o := ShutdownOrder{EventID: row.EventID, At: row.SaidAt, Target: row.Target, Reason: row.Reason, By: row.Actor}
		if r.shutdownOrdersSeen[o.EventID] || !o.concerns(r.tasks.cfg.ProcessID) {
			continue
		}

		// The orders stay in the table, and are read again after each reconnect.
		r.shutdownOrdersSeen[o.EventID] = true
		if row.GraceSeconds != nil {
			grace := time.Duration(*row.GraceSeconds * float64(time.Second))
			o.Grace = &grace
			r.grace.Store(&grace)
		}

		r.tasks.cfg.Shutdown(o)
	}

	return nil
}
