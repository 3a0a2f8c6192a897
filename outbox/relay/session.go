package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

const (
	// drainTimeout bounds how long a relay that is asked to stop goes on publishing committed
	// events. The next leader publishes the rest.
	drainTimeout = 5 * time.Second
	// statementTimeout bounds a statement: a database host that vanished must not keep the
	// lead, and this process, for as long as TCP waits.
	statementTimeout = time.Minute
)

// statementContext returns a context for a statement. It does not end with ctx: a statement
// that is cancelled takes the connection with it, and with the connection the lead.
func statementContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
}

// session is one period in which the process leads. The reader owns the connection and
// prepares the next batch while the publisher has one in flight; see the package
// documentation.
type session struct {
	*Relay
	conn *pgx.Conn
	q    *db.Queries // on conn
	term int64       // every write names it

	batches       chan batch
	acks          chan ack        // has room for one
	readerDone    chan struct{}   // closed when the reader has returned: nobody receives acks any more
	publishCtx    context.Context //nolint:containedctx // it spans the publisher's batches, and ends drainTimeout after the relay is asked to stop
	cancelPublish func()          // ends publishCtx

	lost            chan struct{}      // closed when the heartbeat failed or found another leader
	lostErr         error              // written before lost is closed
	confirmRequests chan chan struct{} // asks for a heartbeat at once; the answer closes the channel that was sent

	mu          sync.Mutex
	confirmedAt time.Time // when the last successful heartbeat was sent; guarded by mu

	// The rest is owned by the reader.
	highestSeq   uint64            // last sequence in outbox_published
	pendingAck   *ack              // came before the acknowledgement ahead of it was marked
	unknownIDs   map[string]bool   // events that the stream has and the database lost
	unmarkedSeqs map[string]uint64 // message ids of the stream that no publication covers, with their sequences
	hasOldLock   bool              // conn holds the advisory lock of the programs from before relay_leader
	oldLockAsked time.Time         // when conn asked for that lock last
	forgottenAt  time.Time         // when all old publications were deleted last
	forgetCursor int64             // id up to which the current deletion has come
}

func (r *Relay) newSession(ctx context.Context, conn *pgx.Conn, term int64) *session {
	s := &session{
		Relay: r, conn: conn, q: db.New(conn), term: term,
		batches: make(chan batch), acks: make(chan ack, 1), readerDone: make(chan struct{}),
		lost: make(chan struct{}), confirmRequests: make(chan chan struct{}), confirmedAt: time.Now(),
	}

	s.publishCtx, s.cancelPublish = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// run leads until ctx ends, the lead is lost, or the database or the bus fails. The result is nil
// if another process has taken the lead.
func (s *session) run(ctx context.Context, taken *db.RelayTakeRow, heartbeats *pgx.Conn) error {
	// The batch in flight may go on after ctx ends, but not for ever: the bus may never answer.
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, s.cancelPublish) })()

	var goroutines sync.WaitGroup
	goroutines.Go(func() { s.sendHeartbeats(db.New(heartbeats)) })
	err := s.relay(ctx, taken, &goroutines)

	// The publisher may be about to send an acknowledgement that the reader does not receive any
	// more.
	close(s.readerDone)
	close(s.batches)
	goroutines.Wait()
	s.leads.Store(false)

	if errors.Is(err, errSuperseded) {
		s.cfg.Logger.Warn("relay: another process has taken the lead", "term", s.term)
		return nil
	}
	return err
}

// relay takes over, starts the publisher, and reads.
func (s *session) relay(ctx context.Context, taken *db.RelayTakeRow, goroutines *sync.WaitGroup) error {
	olderLeads, err := s.takeOver(ctx, taken)
	if err != nil || olderLeads {
		return err
	}

	s.status.Store(&Status{Holder: s.cfg.Holder})
	s.leads.Store(true)
	// Another leader may have published since this process led last, or died before it marked a
	// batch.
	s.recheck.Store(true)
	goroutines.Go(s.publishBatches)
	return s.read(ctx)
}
