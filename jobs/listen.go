package jobs

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Any session of the database may send any notification, at any rate. So a notification only makes
// this process read rows, and the rows decide. Notifications about unknown names are dropped, the rest
// is gathered: a flood costs a look each notificationInterval, and no line in the log.
const notificationInterval = 10 * time.Millisecond

// Bounds of the notifications gathered between two looks. Polls and heartbeats find the rest.
const (
	maxNotifiedDefinitions = 1024
	maxNotifiedQueues      = 256
	maxPayload             = 1024 // bytes of a payload of ours
)

// notifications gathers notifications until the next look.
type notifications struct {
	arrived chan struct{} // holds one: a notification was gathered

	mu          sync.Mutex
	orders      bool                // guarded by mu
	lanes       map[string]bool     // guarded by mu
	definitions map[string]bool     // guarded by mu
	runs        map[uuid.UUID]int64 // attempts of this process that may be over; guarded by mu
}

func newNotifications() *notifications { return &notifications{arrived: make(chan struct{}, 1)} }

// listen handles the notifications of other processes: new work, cancelled tasks, changed
// definitions, shutdown orders. Polls and heartbeats make up for a lost notification.
func (r *Runner) listen(ctx context.Context) {
	heard := newNotifications()
	var looking sync.WaitGroup
	looking.Go(func() { r.handleNotifications(ctx, heard) })
	defer looking.Wait()

	for ctx.Err() == nil {
		if err := r.receive(ctx, heard); err != nil && ctx.Err() == nil {
			r.logTrouble("listen", err)
		}
		// The session is lost. Polls and heartbeats do without a session until the next try.
		pause(ctx, time.Second)
	}
}

func (r *Runner) receive(ctx context.Context, heard *notifications) error {
	// Not a connection of the pool: an idle connection may have gone silent with the last session.
	own, err := pgx.ConnectConfig(ctx, r.tasks.cfg.Sessions.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}

	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Close(bye)
	}()

	// Shutdown orders first: nothing else reads them between two connections.
	for _, channel := range []string{channelShutdown, channelLane, channelCancel, channelDefinition} {
		if err := listenTo(ctx, own, channel); err != nil {
			return err
		}
	}

	heard.add(r.tasks, &pgconn.Notification{Channel: channelShutdown}) // orders from before this session

	for {
		n, err := r.nextNotification(ctx, own)
		if err != nil {
			return err
		}
		if n != nil {
			heard.add(r.tasks, n)
		}
	}
}

func listenTo(ctx context.Context, own *pgx.Conn, channel string) error {
	ctx, enough := context.WithTimeout(ctx, pingTime)
	defer enough()
	if _, err := own.Exec(ctx, "LISTEN "+channel); err != nil {
		return fmt.Errorf("listen to %s: %w", channel, err)
	}
	return nil
}

// pingTime is how long a listening session may take to answer a ping.
const pingTime = 5 * time.Second

// nextNotification waits for a notification. After ListenPing without a notification, the
// server is pinged and the result is nil: a listener sends no data by itself, and a connection that a router has
// forgotten would stay silent, without an error, for hours.
func (r *Runner) nextNotification(ctx context.Context, own *pgx.Conn) (*pgconn.Notification, error) {
	wait, enough := context.WithTimeout(ctx, r.cfg.ListenPing)
	defer enough()
	n, err := own.WaitForNotification(wait)
	switch {
	case err == nil:
		return n, nil
	// Not a silence, but a broken session or the end of the process.
	case wait.Err() == nil || ctx.Err() != nil || own.IsClosed():
		return nil, fmt.Errorf("wait for a notification: %w", err)
	}

	ask, enough := context.WithTimeout(ctx, min(pingTime, r.cfg.ListenPing))
	defer enough()
	if err := own.Ping(ask); err != nil {
		return nil, fmt.Errorf("the listening session does not answer: %w", err)
	}

	return nil, nil //nolint:nilnil // there was none
}

// add gathers a notification if it can concern this process.
func (h *notifications) add(t *Tasks, n *pgconn.Notification) {
	if len(n.Payload) > maxPayload {
		return
	}

	h.mu.Lock()
	defer h.mu.Unlock()

	switch n.Channel {
	case channelShutdown:
		h.orders = true
	case channelLane:
		if !knownLane(n.Payload) {
			return
		}
		if h.lanes == nil {
			h.lanes = map[string]bool{}
		}
		what := n.Payload
		if len(h.lanes) >= maxNotifiedQueues {
			what = KindWorker // a look for all waiting dequeues
		}
		h.lanes[what] = true
	case channelDefinition:
		if h.definitions == nil {
			h.definitions = map[string]bool{}
		}
		// Payloads are any session's: the map must not grow with a flood.
		if len(h.definitions) >= maxNotifiedDefinitions {
			return
		}
		h.definitions[n.Payload] = true
	case channelCancel:
		// Only attempts that run in this process, so that a flood cannot fill runs.
		c, ok := parseCancelled(n.Payload)
		if !ok || !t.running.has(c) {
			return
		}
		if h.runs == nil {
			h.runs = map[uuid.UUID]int64{}
		}
		h.runs[c.task] = c.job
	}

	select {
	case h.arrived <- struct{}{}:
	default:
	}
}

// handleNotifications handles the gathered notifications until ctx ends.
func (r *Runner) handleNotifications(ctx context.Context, heard *notifications) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-heard.arrived:
		}

		// Take everything and unlock: the reads below may wait for the database.
		heard.mu.Lock()
		orders, lanes, definitions, runs := heard.orders, heard.lanes, heard.definitions, heard.runs
		heard.orders, heard.lanes, heard.definitions, heard.runs = false, nil, nil, nil
		heard.mu.Unlock()

		for lane := range lanes {
			if ids, ok := leaseIDs(lane); ok {
				r.tasks.notifier.leasesNotified(ctx, ids)
				continue
			}
			r.tasks.notifier.queueNotified(lane)
		}

		for id := range definitions {
			r.tasks.defs.forget(id)
		}

		if err := r.tasks.notifier.cancelNotified(ctx, runs); err != nil && ctx.Err() == nil {
			r.logTrouble("read cancelled tasks", err) // heartbeats will tell
		}

		// No poll finds orders, so a failed read is repeated here.
		if orders {
			if err := r.applyShutdownOrders(ctx); err != nil && ctx.Err() == nil {
				r.logTrouble("read shutdown orders", err)
				heard.add(r.tasks, &pgconn.Notification{Channel: channelShutdown})
				pause(ctx, time.Second)
			}
		}

		// The notifications of a flood are gathered meanwhile.
		if !pause(ctx, notificationInterval) {
			return
		}
	}
}

// leaseIDs reads a notification about work for remote workers: "task.worker" and the ids of
// leaseKey.ids; without ids, the work may wait under any key.
func leaseIDs(name string) (ids []string, ok bool) {
	words := strings.Fields(name)
	if len(words) == 0 || words[0] != KindWorker {
		return nil, false
	}
	return words[1:], true
}

// knownLane reports whether a notification with this name can wake a claimer or a dequeue.
func knownLane(name string) bool {
	if ids, ok := leaseIDs(name); ok {
		return len(ids) <= len(leaseKey{}.ids())
	}

	for _, w := range wakeKinds {
		if w.lane == name {
			return true
		}
	}

	return false
}

// parseCancelled reads "task job", as cancelEverywhere writes it.
func parseCancelled(payload string) (c attemptID, ok bool) {
	id, job, _ := strings.Cut(payload, " ")
	task, err := uuid.Parse(id)
	n, err2 := strconv.ParseInt(job, 10, 64)
	return attemptID{task, n}, err == nil && err2 == nil
}

// cancelNotified ends the attempts of this process that are over by the rows of their tasks.
func (n *notifier) cancelNotified(ctx context.Context, runs map[uuid.UUID]int64) error {
	if len(runs) == 0 {
		return nil
	}

	ids := make([]uuid.UUID, 0, len(runs))
	for id := range runs {
		ids = append(ids, id)
	}

	rows, err := n.t.q.TaskTokens(ctx, ids)
	if err != nil {
		return readError("tasks", err)
	}

	for _, row := range rows {
		// The row decides: this attempt still runs, as after a forged notification.
		if row.JobID == runs[row.TaskID] && !Status(row.Status).Terminal() {
			delete(runs, row.TaskID)
		}
	}

	for id, job := range runs {
		n.t.running.cancel(attemptID{id, job}, ErrCancelled)
	}

	return nil
}
