package callback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

const (
	// updatesPerDelivery is how many updates of one task are posted before its row is settled.
	updatesPerDelivery = 8
	// statementTimeout bounds the statements of one pass of the loop.
	statementTimeout = 20 * time.Second
	// drainTimeout bounds how long posts in flight may go on after Run is asked to stop.
	drainTimeout = 5 * time.Second
)

// loop is the state of a call of Run. The goroutine of Run owns every field, and no other
// goroutine reads or writes rows.
type loop struct {
	*Dispatcher
	q              *db.Queries
	hosts          map[string]*host // by name
	returned       chan delivery    // has room for all deliveries in flight
	inFlight       int              // deliveries that have not been collected
	unsaved        []delivery       // collected and not settled yet
	locked         []delivery       // like unsaved, but another session had their rows locked
	nextPass       time.Time        // when to look for due rows again
	pause          time.Duration    // before the next pass, after an error of the database
	hostsCheckedAt time.Time        // when unused hosts were removed last
}

// delivery is the next updates of a claimed task, and the result of the posts.
type delivery struct {
	task     uuid.UUID
	host     *host
	address  string
	claim    int32 // the number of the claim; settling under an older one changes nothing
	updates  []update
	deadline time.Time // no post begins later, or the claim could run out during the post

	from      int32 // told when the row was claimed
	delivered int32 // the number of the last event that needs no post any more
	tries     int32 // failed posts of the update after told
	abandoned bool  // the update told was abandoned
	wait      time.Duration
	problem   string // why the last post failed, without addresses
	noAnswer  bool   // the host did not answer
}

// Run posts updates until ctx ends, and returns when the posts in flight have ended, at most
// drainTimeout later.
func (d *Dispatcher) Run(ctx context.Context) {
	l := &loop{Dispatcher: d, q: db.New(d.pool), hosts: map[string]*host{}, returned: make(chan delivery, d.cfg.Slots)}
	// Posts outlive ctx for drainTimeout, or updates that the host has taken would be posted
	// again.
	posts, cancelPosts := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelPosts()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancelPosts) })()

	for {
		stopping := ctx.Err() != nil // asked once, so that one pass does not see both answers
		err := l.pass(ctx, posts, stopping)

		// With the database away, unsaved results are dropped: another process posts again.
		if stopping && l.inFlight == 0 && (err != nil || len(l.unsaved) == 0) {
			return
		}

		if err == nil {
			l.pause = 0
		} else {
			l.pause = min(max(2*l.pause, 50*time.Millisecond), time.Second)
			d.cfg.Logger.Warn("callbacks: a statement failed, the database keeps the updates", "error", err, "again_in", l.pause)
		}

		if stopping {
			l.await(nil, nil)
		} else {
			l.await(ctx.Done(), l.wake)
		}
	}
}

// await waits until there is work for the next pass. A nil stop means that Run is stopping: only
// deliveries in flight are waited for.
func (l *loop) await(stop <-chan struct{}, wake <-chan struct{}) {
	var timer <-chan time.Time
	switch {
	case l.pause > 0:
		timer, wake = time.After(l.pause), nil
	case stop != nil:
		timer = time.After(time.Until(l.nextPass))
	}

	select {
	case <-stop:
	case <-wake:
	case <-timer:
	case one := <-l.returned:
		l.collect(one)
	}

	// Deliveries that have returned by now are settled by the same statement.
	for {
		select {
		case one := <-l.returned:
			l.collect(one)
		default:
			return
		}
	}
}

// collect takes a delivery back into the loop.
func (l *loop) collect(one delivery) {
	l.inFlight--
	one.host.inFlight--
	l.unsaved = append(l.unsaved, one)
}

// pass settles the collected deliveries and, unless Run is stopping, starts others. posts is the
// context of their posts.
func (l *loop) pass(ctx, posts context.Context, stopping bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()

	l.nextPass = time.Now().Add(l.cfg.PollInterval)
	if err := l.saveResults(ctx); err != nil {
		return err
	}

	l.removeUnusedHosts()
	if stopping || l.inFlight == l.cfg.Slots {
		return nil
	}

	claimed, err := l.claim(ctx)
	if err != nil {
		return err
	}

	for _, one := range claimed {
		l.inFlight++
		one.host.inFlight++
		go func() { l.returned <- l.deliver(posts, one) }()
	}

	return nil
}

// saveResults writes the results of the collected deliveries. If another session has one of the rows
// locked, each delivery is settled by a separate statement, so that only the locked row delays a
// delivery.
func (l *loop) saveResults(ctx context.Context) error {
	if err := l.saveLocked(ctx); err != nil {
		return err
	}

	if len(l.unsaved) == 0 {
		return nil
	}

	// A single statement: nearly always no row is locked.
	err := l.write(ctx, l.q, l.unsaved)
	switch {
	case isLockTimeout(err):
		l.locked, l.unsaved = append(l.locked, l.unsaved...), l.unsaved[:0]
		return l.saveLocked(ctx)
	case err != nil:
		return err
	}

	settled := l.unsaved
	l.unsaved = nil
	return l.afterSaved(ctx, settled)
}

// saveLocked settles the locked deliveries individually, with a short wait for each row.
func (l *loop) saveLocked(ctx context.Context) error {
	waiting := l.locked
	l.locked = nil
	for i, one := range waiting {
		err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
			q := l.q.WithTx(tx)
			if err := q.LockBriefly(ctx); err != nil {
				return fmt.Errorf("settle a callback: %w", err)
			}
			return l.write(ctx, q, waiting[i:i+1])
		})

		switch {
		case isLockTimeout(err):
			l.locked = append(l.locked, one)
		case err != nil:
			l.locked = append(l.locked, waiting[i:]...)
			return err
		default:
			if err := l.afterSaved(ctx, waiting[i:i+1]); err != nil {
				return err
			}
		}
	}

	return nil
}

// isLockTimeout reports that a statement waited for a locked row for lock_timeout.
func isLockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

func (l *loop) write(ctx context.Context, q *db.Queries, deliveries []delivery) error {
	var p db.CallbackSettleParams
	for _, one := range deliveries {
		p.TaskIds = append(p.TaskIds, one.task)
		p.Claims = append(p.Claims, one.claim)
		p.FromTolds = append(p.FromTolds, one.from)
		p.Tolds = append(p.Tolds, one.delivered)
		p.Tries = append(p.Tries, one.tries)
		p.GivenUps = append(p.GivenUps, one.abandoned)
		p.Waits = append(p.Waits, one.wait.Seconds())
		p.Problems = append(p.Problems, one.problem)
	}

	if err := q.CallbackSettle(ctx, p); err != nil {
		return fmt.Errorf("settle callbacks: %w", err)
	}
	return nil
}

// afterSaved logs abandoned updates, plans the next pass for those that wait, and abandons the
// old updates of hosts that are away.
func (l *loop) afterSaved(ctx context.Context, settled []delivery) error {
	away := map[*host]string{}
	for _, one := range settled {
		// One failed post is not enough: a host is away once its breaker has opened.
		if one.noAnswer && one.host.breaker.Status().State != retry.Closed {
			away[one.host] = one.problem
		}
		// The loop must not sleep past the pause of this task.
		if due := time.Now().Add(one.wait); one.wait > 0 && due.Before(l.nextPass) {
			l.nextPass = due
		}
		if one.abandoned {
			l.cfg.Logger.Error("callback abandoned", "task", one.task, "seq", one.delivered, "host", one.host.name, "tries", one.tries, "reason", one.problem)
		}
	}

	for h, problem := range away {
		if err := l.abandonOld(ctx, h.name, problem); err != nil {
			return err
		}
	}

	return nil
}

// abandonOld abandons the updates of an absent host that are older than AbandonAfter.
// Otherwise each update would have to be posted once more, and an open breaker lets few posts
// through.
func (l *loop) abandonOld(ctx context.Context, host, problem string) error {
	n, err := l.q.CallbackExpire(ctx, db.CallbackExpireParams{
		Before: time.Now().Add(-l.cfg.AbandonAfter), Host: host, Problem: problem,
	})
	if err != nil {
		return fmt.Errorf("abandon old callbacks: %w", err)
	}

	if n > 0 {
		l.cfg.Logger.Error("callbacks abandoned: their host was away for too long", "updates", n, "host", host, "reason", problem)
	}
	return nil
}

// claim claims due rows, as many as there are free slots, and returns a delivery for each.
func (l *loop) claim(ctx context.Context) ([]delivery, error) {
	lease := 3 * l.cfg.Timeout
	p := db.CallbackClaimParams{
		Updates: updatesPerDelivery, PerHost: int32(l.cfg.SlotsPerHost), Places: int32(l.cfg.Slots - l.inFlight), LeaseSeconds: lease.Seconds(),
	}

	// The statement knows the hosts with fewer free slots than SlotsPerHost; the other hosts are idle.
	for name, h := range l.hosts {
		if free := h.freeSlots(l.cfg.SlotsPerHost); free < l.cfg.SlotsPerHost {
			p.Hosts, p.Rooms = append(p.Hosts, name), append(p.Rooms, int32(free))
		}
	}

	// Before the statement, because the lease begins during it.
	deadline := time.Now().Add(lease - l.cfg.Timeout)
	rows, err := l.q.CallbackClaim(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("claim callbacks: %w", err)
	}

	// Each row is an update; the updates of a task follow each other.
	var claimed []delivery
	for i, row := range rows {
		u, err := newUpdate(row)
		if err != nil {
			return nil, err
		}

		if i == 0 || claimed[len(claimed)-1].task != row.TaskID {
			claimed = append(claimed, delivery{
				task: row.TaskID, host: l.host(row.Host), address: deref(row.CallbackUrl), claim: row.Claim, deadline: deadline,
				from: row.Told, delivered: row.Told, tries: row.Tries,
			})
		}

		last := &claimed[len(claimed)-1]
		last.updates = append(last.updates, u)
	}

	return claimed, nil
}
