package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db"
)

// heartbeatsPerTimeout is how many heartbeats a leader sends in Config.HeartbeatTimeout.
const heartbeatsPerTimeout = 5

// errSuperseded ends the session of a leader whose row names another term.
var errSuperseded = errors.New("another process has taken the lead")

// Status says which process leads, as this process saw it last.
type Status struct {
	// State is "leading", "standing by" (another process leads), "silent" (no process sends
	// heartbeats and the lead cannot be taken), or "failing" (this process led last and could
	// not publish).
	State string
	// Holder is the process that leads; empty if unknown.
	Holder string
	// Silent is the age of the leader's heartbeat when this process saw it last.
	Silent time.Duration
}

// Status returns the last known leader. While the database answers, the information is no
// older than Config.ElectInterval or a fifth of Config.HeartbeatTimeout.
func (r *Relay) Status() Status {
	var s Status
	if last := r.status.Load(); last != nil {
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

// defaultHolder returns the host's name and the process id.
func defaultHolder() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// lead takes the lead and publishes for as long as this process holds it. The result is nil if
// another process leads.
func (r *Relay) lead(ctx context.Context) error {
	pooled, err := r.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}

	taken, err := r.take(ctx, db.New(pooled))
	if err != nil || taken == nil {
		pooled.Release()
		return err
	}

	// relay_leader names this database session: other processes look whether the session
	// lives, and may end the session. So the connection cannot go back to the pool.
	conn := pooled.Hijack()
	defer closeConn(ctx, conn)

	q := db.New(conn)
	defer r.resign(ctx, q, taken.Term)

	// Heartbeats have a separate session, which no long statement delays.
	pooled, err = r.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect for the heartbeat: %w", err)
	}

	heartbeats := pooled.Hijack()
	defer closeConn(ctx, heartbeats)

	s := r.newSession(ctx, conn, taken.Term)
	defer s.cancelPublish()

	return s.run(ctx, taken, heartbeats)
}

// acquire returns a connection of the pool. The pool pings a connection that was idle, and a
// host that vanished does not answer; hence the timeout.
func (r *Relay) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return r.pool.Acquire(ctx) //nolint:wrapcheck // the caller says for what
}

// take asks for the lead; nil if another process leads.
func (r *Relay) take(ctx context.Context, q *db.Queries) (*db.RelayTakeRow, error) {
	ctx, cancel := statementContext(ctx)
	defer cancel()

	taken, err := q.RelayTake(ctx, db.RelayTakeParams{Holder: r.cfg.Holder, SilenceSeconds: r.cfg.HeartbeatTimeout.Seconds()})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, r.standBy(ctx, q)
	}
	if err != nil {
		return nil, fmt.Errorf("take the lead: %w", err)
	}
	return &taken, nil
}

// standBy records which process leads. standBy logs once when the leader has been silent for twice
// the timeout: then another session has the leader's row locked.
func (r *Relay) standBy(ctx context.Context, q *db.Queries) error {
	leader, err := q.RelayLeader(ctx)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("read the leader: the table relay_leader has lost its row: run tes migrate, or INSERT INTO relay_leader DEFAULT VALUES")
	}
	if err != nil {
		return fmt.Errorf("read the leader: %w", err)
	}

	now := Status{State: "standing by", Holder: leader.Holder, Silent: seconds(leader.SilentSeconds)}
	if now.Silent > 2*r.cfg.HeartbeatTimeout {
		now.State = "silent"
	}
	// Without a lock on the row, this process or another one would have taken the lead by now.
	if before := r.status.Swap(&now); now.State == "silent" && (before == nil || before.State != now.State) {
		r.cfg.Logger.Error("relay: the leader is silent and its row cannot be taken: does a session hold a lock on the table relay_leader?",
			"leader", now.Holder, "silent", now.Silent)
	}

	return nil
}

// resign gives the lead back. An error does not matter: the end of the database session frees
// the lead too, a little later.
func (r *Relay) resign(ctx context.Context, q *db.Queries, term int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = q.RelayYield(ctx, term)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// takeOver ends the database session of a predecessor that was silent, and takes the advisory
// lock of the programs from before relay_leader. The result is true if such a program publishes
// at this moment.
func (s *session) takeOver(ctx context.Context, taken *db.RelayTakeRow) (olderLeads bool, err error) {
	ctx, cancel := statementContext(ctx)
	defer cancel()

	if taken.Ousted != "" {
		s.cfg.Logger.Warn("relay: replaced a leader that was gone or silent", "leader", taken.Ousted, "silent", seconds(taken.SilentSeconds), "term", taken.Term)
		s.terminate(ctx, taken)
	}

	// The name shows operators which session publishes. It also keeps other processes from taking
	// this session, which holds the old lock, for an older program's.
	if err := s.q.RelayName(ctx); err != nil {
		return false, fmt.Errorf("name the leader's session: %w", err)
	}

	key, err := s.q.RelayKey(ctx)
	if err != nil {
		return false, fmt.Errorf("take the older programs' lock: %w", err)
	}

	s.hasOldLock, s.oldLockAsked = key.Held, time.Now()
	if key.OlderLeads {
		s.status.Store(&Status{State: "standing by", Holder: "an older program"})
	}

	return key.OlderLeads, nil
}

// terminate ends the predecessor's database session. A failure is logged only: the term fences
// the predecessor's writes, and the stream refuses its batches.
func (s *session) terminate(ctx context.Context, taken *db.RelayTakeRow) {
	if taken.OustedPid == nil || taken.OustedStart == nil {
		return
	}

	gone, err := s.q.RelayOust(ctx, db.RelayOustParams{Pid: *taken.OustedPid, StartedAt: *taken.OustedStart})
	if err != nil || !gone {
		s.cfg.Logger.Warn("relay: the silent leader's session could not be ended", "leader", taken.Ousted, "pid", *taken.OustedPid, "error", err)
	}
}

// sendHeartbeats updates the leader's row until the reader is done. A late heartbeat does no
// harm as long as no other process has taken the lead.
func (s *session) sendHeartbeats(q *db.Queries) {
	tick := time.NewTicker(s.cfg.HeartbeatTimeout / heartbeatsPerTimeout)
	defer tick.Stop()

	locked := false
	for {
		var request chan struct{}
		select {
		case <-s.readerDone:
			return
		case <-tick.C:
		case request = <-s.confirmRequests:
		}

		// Not the time of the answer: a slow statement must not extend the trust in the lead.
		sentAt := time.Now()
		written, err := s.heartbeat(q)
		if err != nil {
			s.loseLead(err)
			return
		}

		// Log a lock once, not with each heartbeat.
		if !written && !locked {
			s.cfg.Logger.Warn("relay: a session holds a lock on the table relay_leader: publishing goes on, but no other process could take over")
		}

		locked = !written

		s.mu.Lock()
		s.confirmedAt = sentAt
		s.mu.Unlock()
		if request != nil {
			close(request)
		}
	}
}

// heartbeat updates the leader's row. The result is false if another session has the row locked:
// the process leads on, for no other process can take the lead.
func (s *session) heartbeat(q *db.Queries) (written bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()

	row, err := q.RelayBeat(ctx, s.term)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, errSuperseded // the leader's row was deleted
	case err != nil:
		return false, fmt.Errorf("heartbeat: %w", err)
	case !row.Leads:
		return false, errSuperseded
	}
	return row.Beaten, nil
}

// loseLead ends the session from the heartbeat's goroutine, and cancels the batch in flight.
func (s *session) loseLead(err error) {
	s.lostErr = err
	close(s.lost)
	s.cancelPublish()
}

// confirmLead returns nil if the process still leads. confirmLead waits for a heartbeat if the
// last heartbeat is older than HeartbeatTimeout: then the process was stopped meanwhile. Both clocks count,
// because the monotonic clock stands still while a virtual machine is paused.
func (s *session) confirmLead(ctx context.Context) error {
	s.mu.Lock()
	last := s.confirmedAt
	s.mu.Unlock()
	now := time.Now()
	if max(now.Sub(last), now.Round(0).Sub(last.Round(0))) < s.cfg.HeartbeatTimeout {
		return nil
	}

	confirmed := make(chan struct{})
	select {
	case s.confirmRequests <- confirmed:
	case <-s.lost:
		return s.lostErr
	case <-s.readerDone:
		return errSuperseded
	case <-ctx.Done():
		return context.Cause(ctx)
	}

	select {
	case <-confirmed:
		return nil
	case <-s.lost:
		return s.lostErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
