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
	// lastWords bounds how long callbacks that are on their way may go on after we are asked
	// to stop.
	lastWords = 5 * time.Second
	// updatesATrip is how many updates of one task go one after the other before its
	// row is settled.
	updatesATrip = 8
	// settleTime bounds a statement; what is not settled is repeated.
	settleTime = 20 * time.Second
)

// courier is one run of Dispatcher. Its loop alone reads and writes the rows; each trip
// is a goroutine, and there is one of a task at a time, so order is kept.
type courier struct {
	*Dispatcher
	q       *db.Queries
	hosts   map[string]*host // owned by the loop
	back    chan trip        // has room for all that are out
	out     int              // trips that are not back; owned by the loop
	settled []trip           // back, and not written yet
	locked  []trip           // the same, but somebody had locked their rows
	next    time.Time        // when to look again
	pause   time.Duration    // after an error of the database
	swept   time.Time
}

// trip is one task's next updates, and what became of them.
type trip struct {
	task    uuid.UUID
	host    *host
	address string
	claim   int32
	updates []update
	until   time.Time // no call begins later: the claim would run out under it

	from    int32 // told when it was claimed
	told    int32
	tries   int32
	givenUp bool
	wait    time.Duration
	problem string
	away    bool // the host did not answer
}

// Run makes callbacks until ctx ends, and waits a short while for those that are on
// their way.
func (c *Dispatcher) Run(ctx context.Context) {
	r := &courier{Dispatcher: c, q: db.New(c.pool), hosts: map[string]*host{}, back: make(chan trip, c.cfg.Places)}
	calls, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, hangUp) })()
	for {
		stopping := ctx.Err() != nil // asked once, for all that follows
		err := r.round(ctx, calls, stopping)
		if stopping && r.out == 0 && (err != nil || len(r.settled) == 0) {
			return
		}
		if err == nil {
			r.pause = 0
		} else {
			r.pause = min(max(2*r.pause, 50*time.Millisecond), time.Second)
			c.cfg.Logger.Warn("callbacks: nothing is lost, the database keeps them", "error", err, "again_in", r.pause)
		}
		if stopping {
			r.await(nil, nil)
		} else {
			r.await(ctx.Done(), r.wake)
		}
	}
}

// await waits until there is something to do. Without stop, we are stopping: only
// what is out is waited for.
func (r *courier) await(stop <-chan struct{}, wake <-chan struct{}) {
	var look <-chan time.Time
	switch {
	case r.pause > 0:
		look, wake = time.After(r.pause), nil
	case stop != nil:
		look = time.After(time.Until(r.next))
	}
	select {
	case <-stop:
	case <-wake:
	case <-look:
	case t := <-r.back:
		r.home(t)
	}
	for { // whoever else is back shares the statement
		select {
		case t := <-r.back:
			r.home(t)
		default:
			return
		}
	}
}

func (r *courier) home(t trip) {
	r.out--
	t.host.out--
	r.settled = append(r.settled, t)
}

// round writes what became of the trips that are back, and sends others out.
func (r *courier) round(ctx, calls context.Context, stopping bool) error {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	r.next = time.Now().Add(r.cfg.Poll)
	if err := r.settle(work); err != nil {
		return err
	}
	r.forget()
	if stopping || r.out == r.cfg.Places {
		return nil
	}
	trips, err := r.claim(work)
	if err != nil {
		return err
	}
	for _, t := range trips {
		r.out++
		t.host.out++
		go func() { r.back <- r.deliver(calls, t) }()
	}
	return nil
}

// settle writes what became of trips. One whose row somebody has locked waits for the
// next round, by itself, and holds up no other.
func (r *courier) settle(ctx context.Context) error {
	if err := r.settleLocked(ctx); err != nil {
		return err
	}
	if len(r.settled) == 0 {
		return nil
	}
	err := r.write(ctx, r.q, r.settled)
	switch {
	case lockedOut(err):
		r.locked, r.settled = append(r.locked, r.settled...), r.settled[:0]
		return r.settleLocked(ctx)
	case err != nil:
		return err
	}
	done := r.settled
	r.settled = nil
	return r.told(ctx, done)
}

// settleLocked writes those that somebody had locked, one by one.
func (r *courier) settleLocked(ctx context.Context) error {
	waiting := r.locked
	r.locked = nil
	for i, t := range waiting {
		err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			q := r.q.WithTx(tx)
			if err := q.LockBriefly(ctx); err != nil {
				return fmt.Errorf("settle a callback: %w", err)
			}
			return r.write(ctx, q, waiting[i:i+1])
		})
		switch {
		case lockedOut(err):
			r.locked = append(r.locked, t)
		case err != nil:
			r.locked = append(r.locked, waiting[i:]...)
			return err
		default:
			if err := r.told(ctx, waiting[i:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// lockedOut reports a statement that waited for a lock in vain.
func lockedOut(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

func (r *courier) write(ctx context.Context, q *db.Queries, trips []trip) error {
	var p db.CallbackSettleParams
	for _, t := range trips {
		p.TaskIds = append(p.TaskIds, t.task)
		p.Claims = append(p.Claims, t.claim)
		p.FromTolds = append(p.FromTolds, t.from)
		p.Tolds = append(p.Tolds, t.told)
		p.Tries = append(p.Tries, t.tries)
		p.GivenUps = append(p.GivenUps, t.givenUp)
		p.Waits = append(p.Waits, t.wait.Seconds())
		p.Problems = append(p.Problems, t.problem)
	}
	if err := q.CallbackSettle(ctx, p); err != nil {
		return fmt.Errorf("settle callbacks: %w", err)
	}
	return nil
}

// told does what follows from trips that were written.
func (r *courier) told(ctx context.Context, trips []trip) error {
	away := map[*host]string{}
	for _, t := range trips {
		if t.away && t.host.breaker.Status().State != retry.Closed {
			away[t.host] = t.problem
		}
		if due := time.Now().Add(t.wait); t.wait > 0 && due.Before(r.next) {
			r.next = due
		}
		if t.givenUp {
			r.cfg.Logger.Error("callback given up", "task", t.task, "seq", t.told, "host", t.host.name, "tries", t.tries, "reason", t.problem)
		}
	}
	for h, problem := range away {
		if err := r.expire(ctx, h.name, problem); err != nil {
			return err
		}
	}
	return nil
}

// expire gives up what a host that is away has not taken for too long. Without it
// each would have to be the one that tries the host, and there are few of those.
func (r *courier) expire(ctx context.Context, host, problem string) error {
	n, err := r.q.CallbackExpire(ctx, db.CallbackExpireParams{
		Before: time.Now().Add(-r.cfg.GiveUp), Host: host, Problem: problem,
	})
	if err != nil {
		return fmt.Errorf("give up old callbacks: %w", err)
	}
	if n > 0 {
		r.cfg.Logger.Error("callbacks given up: their host has been away for too long", "updates", n, "host", host, "reason", problem)
	}
	return nil
}

// claim takes what is due, as far as there is room for it.
func (r *courier) claim(ctx context.Context) ([]trip, error) {
	lease := 3 * r.cfg.Timeout
	p := db.CallbackClaimParams{
		Updates: updatesATrip, PerHost: int32(r.cfg.PerHost), Places: int32(r.cfg.Places - r.out), LeaseSeconds: lease.Seconds(),
	}
	for name, h := range r.hosts {
		if room := h.room(r.cfg.PerHost); room < r.cfg.PerHost {
			p.Hosts, p.Rooms = append(p.Hosts, name), append(p.Rooms, int32(room))
		}
	}
	until := time.Now().Add(lease - r.cfg.Timeout)
	rows, err := r.q.CallbackClaim(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("claim callbacks: %w", err)
	}
	var trips []trip
	for i, row := range rows {
		u, err := updateOf(row)
		if err != nil {
			return nil, err
		}
		if i == 0 || trips[len(trips)-1].task != row.TaskID {
			trips = append(trips, trip{
				task: row.TaskID, host: r.host(row.Host), address: deref(row.CallbackUrl), claim: row.Claim, until: until,
				from: row.Told, told: row.Told, tries: row.Tries,
			})
		}
		last := &trips[len(trips)-1]
		last.updates = append(last.updates, u)
	}
	return trips, nil
}
