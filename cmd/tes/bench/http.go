package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/benchdb"
	"github.com/seed-3f7a0631/tes/jobs"
)

const (
	// riverInserters insert one River job per call, without HTTP. River's rate does not grow with more
	// of them.
	riverInserters = 16
	// catchUpTime is how long after the last create every task must be COMPLETED and published. A
	// service that needs longer has not kept up with the rate.
	catchUpTime = 5 * time.Second
)

// http measures creates per second through the whole service: HTTP with keep-alive, a token that is
// verified for every request, and every task run to COMPLETED and published meanwhile. The peer is
// River, inserting one job per call while its jobs are worked.
func (b *suite) http() error {
	for i := range b.size.rounds {
		figures := roundFigures{}
		b.step(1, "HTTP %d/%d", i+1, b.size.rounds)
		if err := b.httpOurs(figures); err != nil {
			return err
		}

		b.step(1, "HTTP %d/%d: River", i+1, b.size.rounds)
		if err := b.httpRiver(figures); err != nil {
			return fmt.Errorf("river: %w", err)
		}

		b.out.add("http", figures)
	}

	b.out.HTTP = b.out.compare("http")
	return nil
}

// httpService is the service as tes serve runs it, on its own database, bus and fake peer
// services.
type httpService struct {
	*Service
	closers []func() error
}

func (b *suite) httpService() (h *httpService, token string, err error) {
	h = &httpService{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()

	// Each part is closed in the opposite order, so the database goes last, when nobody is
	// connected.
	name, err := b.server.fresh(b.ctx, "tes")
	if err != nil {
		return h, "", err
	}

	if !b.options.Keep {
		h.closers = append(h.closers, func() error { return b.server.drop(name) })
	}

	bus, closeBus, err := b.server.bus(b.ctx, b.log)
	if err != nil {
		return h, "", err
	}

	h.closers = append(h.closers, closeBus)

	peers, err := peertest.Start(peertest.Config{})
	if err != nil {
		return h, "", err
	}

	h.closers = append(h.closers, func() error {
		ctx, cancel := cleanupContext()
		defer cancel()
		return peers.Close(ctx)
	})

	// tes serve formats a log line for each request, so the measured service does too.
	log := slog.New(slog.NewJSONHandler(io.Discard, nil))
	h.Service, err = b.env.StartService(b.ctx, ServiceConfig{DatabaseURL: b.server.url(name), PeersURL: peers.URL(), Bus: bus, Log: log})
	if err != nil {
		return h, "", err
	}

	_, _, err = h.Tasks.Definitions.Put(b.ctx, "bench", 0, jobs.Definition{
		ID: definitionID, Type: jobs.Automated, Version: "1", ExecutionConfig: jobs.ExecutionConfig{Executor: "noop"},
	})
	return h, peers.Token("workflow-orchestrator"), err
}

func (h *httpService) close() error {
	ctx, cancel := cleanupContext()
	defer cancel()
	var errs []error
	if h.Service != nil {
		errs = append(errs, h.Stop(ctx))
	}

	for i := len(h.closers) - 1; i >= 0; i-- {
		errs = append(errs, h.closers[i]())
	}

	return errors.Join(errs...)
}

func (b *suite) httpOurs(figures roundFigures) (err error) {
	h, token, err := b.httpService()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, h.close()) }()
	clients, err := dialCreators(b.ctx, b.size.clients, h.URL, token)
	defer clients.close()
	if err != nil {
		return err
	}

	// Connections, prepared statements and the caches of definitions are there after the warm-up.
	// Its tasks must be done before the clock starts.
	warm, err := b.load(b.size.clients, b.size.warmUp, clients.create)
	if err != nil {
		return err
	}

	if err := h.caughtUp(b.ctx, warm.n, patience); err != nil {
		return err
	}

	if err := b.server.quiesce(b.ctx, h.Sessions); err != nil {
		return err
	}

	settle()
	stopProfile := b.profile("http")
	from := b.server.cpu(b.ctx)
	load, err := b.load(b.size.clients, b.size.load, clients.create)
	if err != nil {
		return err
	}

	// A service must work as fast as it accepts: the backlog of the load must be gone within
	// catchUpTime.
	stopProfile()
	last := time.Now()
	if err := h.caughtUp(b.ctx, warm.n+load.n, catchUpTime); err != nil {
		return err
	}

	timed{took: load.took, from: from, to: b.server.cpu(b.ctx)}.put(figures, "tes", load.n)
	figures["tesP50Ms"], figures["tesP99Ms"] = rounded(median(load.waits)), rounded(percentile(load.waits, 0.99))
	figures["tesBehindMs"] = rounded(milliseconds(time.Since(last)))
	return nil
}

var createBody = []byte(`{"taskDefinitionId": "` + definitionID + `", "workflowId": "bench", "input": {"n": 1}}`)

// creators create tasks over connections that stay open. They write HTTP by hand: an http.Client
// costs as much processor time as the server's half of a request, on the same cores, and only the
// server is to be measured.
type creators struct {
	request []byte
	idle    chan *creator
	all     []*creator
}

type creator struct {
	conn   net.Conn
	answer *bufio.Reader
}

func dialCreators(ctx context.Context, n int, base, token string) (c *creators, err error) {
	host := strings.TrimPrefix(base, "http://")
	c = &creators{
		request: fmt.Appendf(nil, "POST /api/internal/tasks HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", host, token, len(createBody), createBody),
		idle: make(chan *creator, n),
	}

	var dial net.Dialer
	for range n {
		conn, err := dial.DialContext(ctx, "tcp", host)
		if err != nil {
			return c, fmt.Errorf("connect: %w", err)
		}

		one := &creator{conn, bufio.NewReader(conn)}
		c.idle <- one
		c.all = append(c.all, one)
	}

	return c, nil
}

func (c *creators) close() {
	for _, one := range c.all {
		_ = one.conn.Close()
	}
}

func (c *creators) create(context.Context) error {
	one := <-c.idle
	defer func() { c.idle <- one }()
	if err := one.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("create a task: %w", err)
	}

	if _, err := one.conn.Write(c.request); err != nil {
		return fmt.Errorf("create a task: %w", err)
	}

	resp, err := http.ReadResponse(one.answer, nil)
	if err != nil {
		return fmt.Errorf("create a task: %w", err)
	}

	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("create a task: %s: %s", resp.Status, text)
	}

	// The next response begins where this one ends.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("create a task: %w", err)
	}

	return nil
}

// caughtUp waits until n tasks are COMPLETED with all their events on the bus.
func (h *httpService) caughtUp(ctx context.Context, n int, within time.Duration) error {
	q := benchdb.New(h.Sessions)
	var counted benchdb.CountCompletedRow
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		// Counting rows slows the service down, so the relay's own counter goes first.
		if h.Published() >= int64(3*n) {
			var err error
			if counted, err = q.CountCompleted(ctx); err != nil {
				return fmt.Errorf("count: %w", err)
			}
			if counted.Completed == int64(n) && counted.Waiting == 0 && h.Published() == int64(3*n) {
				return nil
			}
		}

		if time.Since(begun) > within {
			return fmt.Errorf("the figure is void: %v after the last of %d creates %d events are published (of %d), %d tasks COMPLETED", within, n, h.Published(), 3*n, counted.Completed)
		}
	}
}

func (b *suite) httpRiver(figures roundFigures) (err error) {
	p, err := b.river(0)
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.start(); err != nil {
		return err
	}

	stopped := false
	defer func() {
		if !stopped {
			err = errors.Join(err, p.stop())
		}
	}()

	insert := func(ctx context.Context) error {
		_, err := p.client.Insert(ctx, noopArgs{N: 1}, nil)
		return err
	}

	warm, err := b.load(riverInserters, b.size.warmUp, insert)
	if err != nil {
		return err
	}

	if err := b.server.quiesce(b.ctx, p.pool); err != nil {
		return err
	}

	settle()
	from := b.server.cpu(b.ctx)
	load, err := b.load(riverInserters, b.size.load, insert)
	if err != nil {
		return err
	}

	// River gets the same time to catch up.
	for begun := time.Now(); p.done.n.Load() < int64(warm.n+load.n) && time.Since(begun) < catchUpTime; {
		time.Sleep(20 * time.Millisecond)
	}

	timed{took: load.took, from: from, to: b.server.cpu(b.ctx)}.put(figures, "river", load.n)
	figures["riverP50Ms"], figures["riverP99Ms"] = rounded(median(load.waits)), rounded(percentile(load.waits, 0.99))
	stopped = true
	return errors.Join(p.stop(), p.verify(warm.n+load.n))
}

// loadResult is the sum of a number of closed-loop callers.
type loadResult struct {
	n     int
	took  time.Duration
	waits []float64 // duration of each call, ms
}

// load lets callers call for a time, each caller again as soon as its last call returns. Calls that
// have begun when the time ends are waited for and counted.
func (b *suite) load(callers int, long time.Duration, call func(context.Context) error) (loadResult, error) {
	// The first error ends the callers: a rate with errors would mean nothing.
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	var over atomic.Bool
	end := time.AfterFunc(long, func() { over.Store(true) })
	defer end.Stop()

	// A slice for each caller, so that the callers share no lock.
	waits := make([][]float64, callers)
	begun := time.Now()
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for !over.Load() && ctx.Err() == nil {
				asked := time.Now()
				if err := call(ctx); err != nil {
					cancel(err)
					return
				}
				waits[i] = append(waits[i], milliseconds(time.Since(asked)))
			}
		})
	}

	all.Wait()
	out := loadResult{took: time.Since(begun)}
	for _, w := range waits {
		out.waits = append(out.waits, w...)
	}

	out.n = len(out.waits)
	return out, context.Cause(ctx)
}
