package main

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
	"github.com/seed-3f7a0631/tes/jobs"
)

const (
	// riverInserters insert one River job a call, without HTTP: River's rate grows
	// no further with more of them.
	riverInserters = 16
	// benchPace is how long after the last create everything may take to be
	// COMPLETED and published, or the rate was not kept.
	benchPace = 5 * time.Second
)

// http measures creates a second through the whole service: HTTP with keep-alive,
// a token checked at every request, and every task run to COMPLETED and published
// meanwhile; against River jobs inserted one a call while they are worked.
func (b *bench) http() error {
	for i := range b.size.rounds {
		figures := benchRound{}
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
	b.out.HTTP = b.out.peer("http")
	return nil
}

// httpService is the service as serve runs it, on a database, a bus and stand-in
// neighbours of its own.
type httpService struct {
	*service
	closers []func() error
}

func (b *bench) httpService() (h *httpService, token string, err error) {
	h = &httpService{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	name, err := b.server.fresh(b.ctx, "tes")
	if err != nil {
		return h, "", err
	}
	if !b.cmd.Keep {
		h.closers = append(h.closers, func() error { return b.server.drop(name) })
	}
	bus, closeBus, err := b.server.bus(b.ctx, b.log)
	if err != nil {
		return h, "", err
	}
	h.closers = append(h.closers, closeBus)
	standins, err := peertest.Start(peertest.Config{})
	if err != nil {
		return h, "", err
	}
	h.closers = append(h.closers, func() error {
		ctx, cancel := lastOrders()
		defer cancel()
		return standins.Close(ctx)
	})
	cfg := b.cfg
	cfg.DatabaseURL, cfg.HTTP, cfg.NeighboursURL = b.server.url(name), "127.0.0.1:0", standins.URL()
	cfg.AuthURL, cfg.IntegrationURL, cfg.UserURL = "", "", ""
	if cfg.Observability == "" {
		cfg.Observability = "off" // bare River makes no spans either; docs/decisions/0010 has what they cost
	}
	// serve writes a line a request; so does this, to nowhere.
	log := slog.New(slog.NewJSONHandler(io.Discard, nil))
	if h.service, err = startService(b.ctx, cfg, surroundings{bus: bus, sharedBus: true, log: log}); err != nil {
		return h, "", err
	}
	_, _, err = h.tasks.Definitions.Put(b.ctx, "bench", 0, jobs.Definition{
		ID: benchDefinition, Type: jobs.Automated, Version: "1", ExecutionConfig: jobs.ExecutionConfig{Executor: "noop"},
	})
	return h, standins.Token("workflow-orchestrator"), err
}

func (h *httpService) close() error {
	ctx, cancel := lastOrders()
	defer cancel()
	var errs []error
	if h.service != nil {
		errs = append(errs, h.stop(ctx))
	}
	for i := len(h.closers) - 1; i >= 0; i-- {
		errs = append(errs, h.closers[i]())
	}
	return errors.Join(errs...)
}

func (b *bench) httpOurs(figures benchRound) (err error) {
	h, token, err := b.httpService()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	clients, err := dialCreators(b.ctx, b.size.clients, h.url, token)
	defer clients.close()
	if err != nil {
		return err
	}

	warm, err := b.press(b.size.clients, b.size.warmUp, clients.create)
	if err != nil {
		return err
	}
	if err := h.caughtUp(b.ctx, warm.n, benchPatience); err != nil {
		return err
	}
	if err := b.server.still(b.ctx, h.sessions); err != nil {
		return err
	}
	settle()
	stopProfile := b.profile("http")
	from := b.server.cpu(b.ctx)
	load, err := b.press(b.size.clients, b.size.load, clients.create)
	if err != nil {
		return err
	}
	stopProfile()
	last := time.Now()
	if err := h.caughtUp(b.ctx, warm.n+load.n, benchPace); err != nil {
		return err
	}
	timed{took: load.took, from: from, to: b.server.cpu(b.ctx)}.put(figures, "tes", load.n)
	figures["tesP50Ms"], figures["tesP99Ms"] = round(median(load.waits)), round(percentile(load.waits, 0.99))
	figures["tesBehindMs"] = round(milliseconds(time.Since(last)))
	return nil
}

var benchBody = []byte(`{"taskDefinitionId": "` + benchDefinition + `", "workflowId": "bench", "input": {"n": 1}}`)

// creators create tasks over connections that stay open. They do by hand what
// http.Client does: that costs as much again as the server's half of a request,
// on the same two cores, and it is the server that is measured.
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
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", host, token, len(benchBody), benchBody),
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
	if err := one.conn.SetDeadline(time.Now().Add(benchPatience)); err != nil {
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
	// The next answer begins where this one ends.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("create a task: %w", err)
	}
	return nil
}

// caughtUp waits until n tasks are COMPLETED with all their events on the bus.
func (h *httpService) caughtUp(ctx context.Context, n int, within time.Duration) error {
	var done, waiting int
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if h.relay.Published() >= int64(3*n) {
			err := h.engine.QueryRow(ctx, "SELECT (SELECT count(*) FROM task WHERE status = 'COMPLETED'), (SELECT count(*) FROM outbox)").Scan(&done, &waiting)
			if err != nil {
				return fmt.Errorf("count: %w", err)
			}
			if done == n && waiting == 0 && h.relay.Published() == int64(3*n) {
				return nil
			}
		}
		if time.Since(begun) > within {
			return fmt.Errorf("the figure is void: %v after the last of %d creates %d events are published (of %d), %d tasks COMPLETED", within, n, h.relay.Published(), 3*n, done)
		}
	}
}

func (b *bench) httpRiver(figures benchRound) (err error) {
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
		_, err := p.client.Insert(ctx, benchArgs{N: 1}, nil)
		return err
	}
	warm, err := b.press(riverInserters, b.size.warmUp, insert)
	if err != nil {
		return err
	}
	if err := b.server.still(b.ctx, p.pool); err != nil {
		return err
	}
	settle()
	from := b.server.cpu(b.ctx)
	load, err := b.press(riverInserters, b.size.load, insert)
	if err != nil {
		return err
	}
	for begun := time.Now(); p.done.n.Load() < int64(warm.n+load.n) && time.Since(begun) < benchPace; {
		time.Sleep(20 * time.Millisecond)
	}
	timed{took: load.took, from: from, to: b.server.cpu(b.ctx)}.put(figures, "river", load.n)
	figures["riverP50Ms"], figures["riverP99Ms"] = round(median(load.waits)), round(percentile(load.waits, 0.99))
	stopped = true
	return errors.Join(p.stop(), p.verify(warm.n+load.n))
}

// pressed is what a number of closed-loop callers came to.
type pressed struct {
	n     int
	took  time.Duration
	waits []float64 // of each call, ms
}

// press lets callers call, each its next as soon as its last is answered, for a
// time. A call that was begun is waited for and counted.
func (b *bench) press(callers int, long time.Duration, call func(context.Context) error) (pressed, error) {
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	var over atomic.Bool
	end := time.AfterFunc(long, func() { over.Store(true) })
	defer end.Stop()
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
	out := pressed{took: time.Since(begun)}
	for _, w := range waits {
		out.waits = append(out.waits, w...)
	}
	out.n = len(out.waits)
	return out, context.Cause(ctx)
}
