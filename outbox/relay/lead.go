package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db"
)

// beatsInSilence is how many heartbeats may be missing before a leader counts as silent.
const beatsInSilence = 5

// errSuperseded ends the turn of a leader whose row names another term.
var errSuperseded = errors.New("another process has taken the lead")

// Standing is what a relay knows of the lead.
type Standing struct {
	// State is "leading", "standing by" (another process leads), "silent" (nobody's
	// heartbeat is seen and the lead cannot be taken), or "failing" (this process led
	// last and could not publish).
	State string
	// Holder is the process that leads, as far as known.
	Holder string
	// Silent is how old the leader's heartbeat was when it was last looked at.
	Silent time.Duration
}

// Standing says who publishes, as of the last look: at most Stand or a fifth of Silence
// ago while the database answers.
func (r *Relay) Standing() Standing {
	var s Standing
	if last := r.standing.Load(); last != nil {
		s = *last
	}
	switch {
	case r.failing.Load():
		s.State = "failing"
	case r.leads.Load():
		s.State = "leading"
	case s.State == "":
		s.State = "standing by"
	}
	return s
}

// holderName names a process that was given no name.
func holderName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// lead publishes for as long as this process holds the lead. It returns nil if
// another process has it.
func (r *Relay) lead(ctx context.Context) error {
	conn, err := r.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	taken, err := r.take(ctx, db.New(conn))
	if err != nil || taken == nil {
		conn.Release()
		return err
	}
	// The session is the leader's: others look whether it lives, and may end it.
	held := conn.Hijack()
	defer closeSession(ctx, held)
	q := db.New(held)
	defer r.yield(ctx, q, taken.Term)

	pulse, err := r.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect for the heartbeat: %w", err)
	}
	beats := pulse.Hijack()
	defer closeSession(ctx, beats)

	t := r.newTurn(ctx, held, taken.Term)
	defer t.hush()
	return t.run(ctx, taken, beats)
}

// acquire waits no longer than for a statement: a connection that was idle in the pool is
// asked whether it is there, and may have gone silent.
func (r *Relay) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	ctx, enough := context.WithTimeout(ctx, lookTime)
	defer enough()
	return r.pool.Acquire(ctx) //nolint:wrapcheck // the caller says for what
}

// take asks for the lead; nil if another process has it.
func (r *Relay) take(ctx context.Context, q *db.Queries) (*db.RelayTakeRow, error) {
	ctx, enough := bounded(ctx)
	defer enough()
	taken, err := q.RelayTake(ctx, db.RelayTakeParams{Holder: r.cfg.Holder, SilenceSeconds: r.cfg.Silence.Seconds()})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, r.standBy(ctx, q)
	}
	if err != nil {
		return nil, fmt.Errorf("take the lead: %w", err)
	}
	return &taken, nil
}

// standBy notes who leads. A leader that has been silent for twice as long as it may, and
// whose row cannot be taken, is told of once: somebody has the row locked.
func (r *Relay) standBy(ctx context.Context, q *db.Queries) error {
	leader, err := q.RelayLeader(ctx)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("read the leader: the table relay_leader has lost its row: run tes migrate, or INSERT INTO relay_leader DEFAULT VALUES")
	}
	if err != nil {
		return fmt.Errorf("read the leader: %w", err)
	}
	now := Standing{State: "standing by", Holder: leader.Holder, Silent: seconds(leader.SilentSeconds)}
	if now.Silent > 2*r.cfg.Silence {
		now.State = "silent"
	}
	if before := r.standing.Swap(&now); now.State == "silent" && (before == nil || before.State != now.State) {
		r.cfg.Logger.Error("relay: the leader is silent and its row cannot be taken: does a session hold a lock on the table relay_leader?",
			"leader", now.Holder, "silent", now.Silent)
	}
	return nil
}

// settle ends the session of the leader before, if that one was silent, and looks after
// the key of older programs. older says that such a program publishes at this moment.
func (t *turn) settle(ctx context.Context, taken *db.RelayTakeRow) (older bool, err error) {
	ctx, enough := bounded(ctx)
	defer enough()
	if taken.Ousted != "" {
		t.cfg.Logger.Warn("relay: the leader was gone or silent and is replaced", "leader", taken.Ousted, "silent", seconds(taken.SilentSeconds), "term", taken.Term)
		t.oust(ctx, t.q, taken)
	}
	if err := t.q.RelayName(ctx); err != nil {
		return false, fmt.Errorf("name the leader's session: %w", err)
	}
	key, err := t.q.RelayKey(ctx)
	if err != nil {
		return false, fmt.Errorf("take the older programs' key: %w", err)
	}
	t.keyed, t.keyAsked = key.Held, time.Now()
	if key.OlderLeads {
		t.standing.Store(&Standing{State: "standing by", Holder: "an older program"})
	}
	return key.OlderLeads, nil
}

// oust ends what is left of a silent leader's session. Its writes are fenced by the term
// and the stream refuses what it publishes, so that a failure is only told of.
func (r *Relay) oust(ctx context.Context, q *db.Queries, taken *db.RelayTakeRow) {
	if taken.OustedPid == nil || taken.OustedStart == nil {
		return
	}
	gone, err := q.RelayOust(ctx, db.RelayOustParams{Pid: *taken.OustedPid, StartedAt: *taken.OustedStart})
	if err != nil || !gone {
		r.cfg.Logger.Warn("relay: the silent leader's session could not be ended", "leader", taken.Ousted, "pid", *taken.OustedPid, "error", err)
	}
}

// yield gives the lead back; the end of the session says it too, a little later.
func (r *Relay) yield(ctx context.Context, q *db.Queries, term int64) {
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = q.RelayYield(bye, term)
}

func closeSession(ctx context.Context, conn *pgx.Conn) {
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(bye)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (r *Relay) newTurn(ctx context.Context, conn *pgx.Conn, term int64) *turn {
	t := &turn{
		Relay: r, conn: conn, q: db.New(conn), term: term,
		rounds: make(chan round), acks: make(chan ack, 1), over: make(chan struct{}),
		lost: make(chan struct{}), doubts: make(chan chan struct{}), confirmed: time.Now(),
	}
	t.voice, t.hush = context.WithCancel(context.WithoutCancel(ctx))
	return t
}

// run leads until ctx ends, the lead is lost, or something fails.
func (t *turn) run(ctx context.Context, taken *db.RelayTakeRow, beats *pgx.Conn) error {
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, t.hush) })()
	var parts sync.WaitGroup
	parts.Go(func() { t.pulse(db.New(beats)) })
	err := t.publishAll(ctx, taken, &parts)
	close(t.over)
	close(t.rounds)
	parts.Wait()
	t.leads.Store(false)
	if errors.Is(err, errSuperseded) {
		t.cfg.Logger.Warn("relay: another process has taken the lead", "term", t.term)
		return nil
	}
	return err
}

func (t *turn) publishAll(ctx context.Context, taken *db.RelayTakeRow, parts *sync.WaitGroup) error {
	older, err := t.settle(ctx, taken)
	if err != nil || older {
		return err
	}
	t.standing.Store(&Standing{Holder: t.cfg.Holder})
	t.leads.Store(true)
	t.check.Store(true)
	parts.Go(t.publish)
	return t.read(ctx)
}

// pulse beats on a session of its own, which no long statement holds up, until the turn is
// over. A heartbeat that comes too late is no matter as long as nobody has taken the lead.
func (t *turn) pulse(q *db.Queries) {
	tick := time.NewTicker(t.cfg.Silence / beatsInSilence)
	defer tick.Stop()
	locked := false
	for {
		var doubter chan struct{}
		select {
		case <-t.over:
			return
		case <-tick.C:
		case doubter = <-t.doubts:
		}
		at := time.Now()
		beaten, err := t.beat(q)
		if err != nil {
			t.lose(err)
			return
		}
		if !beaten && !locked {
			t.cfg.Logger.Warn("relay: a session holds a lock on the table relay_leader: publishing goes on, no other process could take over")
		}
		locked = !beaten
		t.mu.Lock()
		t.confirmed = at
		t.mu.Unlock()
		if doubter != nil {
			close(doubter)
		}
	}
}

// beat is false where the row is locked: the lead stands, and cannot be told of.
func (t *turn) beat(q *db.Queries) (bool, error) {
	ctx, enough := context.WithTimeout(context.Background(), lookTime)
	defer enough()
	row, err := q.RelayBeat(ctx, t.term)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, errSuperseded // the row is gone
	case err != nil:
		return false, fmt.Errorf("heartbeat: %w", err)
	case !row.Leads:
		return false, errSuperseded
	}
	return row.Beaten, nil
}

// lose ends the turn from the heartbeat's side; what is being published is given up.
func (t *turn) lose(err error) {
	t.whyLost = err
	close(t.lost)
	t.hush()
}

// sure says that this process leads still. Whoever was stopped for longer than a leader
// may be silent asks first: the clock on the wall counts too, for the other one stands
// still while a virtual machine is paused.
func (t *turn) sure(ctx context.Context) error {
	t.mu.Lock()
	last := t.confirmed
	t.mu.Unlock()
	now := time.Now()
	if max(now.Sub(last), now.Round(0).Sub(last.Round(0))) < t.cfg.Silence {
		return nil
	}
	answer := make(chan struct{})
	select {
	case t.doubts <- answer:
	case <-t.lost:
		return t.whyLost
	case <-t.over:
		return errSuperseded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-answer:
		return nil
	case <-t.lost:
		return t.whyLost
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
