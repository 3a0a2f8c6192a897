package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// latency sends single tasks into an idle service with default settings, 40 to 160
// ms apart, so that they meet every phase of its polls.
func (b *bench) latency() (err error) {
	e, err := b.engine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	bus, err := e.bus()
	if err != nil {
		return err
	}
	w := &watch{Publisher: bus, starts: map[uuid.UUID]time.Time{}, told: make(chan ack, 16)}
	e.publish(w)
	stop := e.run(w, jobs.RunnerConfig{})
	defer func() { err = errors.Join(err, stop()) }()
	b.step(b.size.single, "latency")

	const warm = 5 // the first ones meet new connections and statements without a plan
	var creates, starts, events []float64
	for i := range warm + b.size.single {
		create, start, event, err := e.single(w)
		if err != nil {
			return err
		}
		if i >= warm {
			creates, starts, events = append(creates, create), append(starts, start), append(events, event)
			_ = b.bar.Add(1)
		}
		select {
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		case <-time.After(40*time.Millisecond + rand.N(120*time.Millisecond)):
		}
	}
	b.out.Latency = &benchLatency{
		StartP50: round(median(starts)), StartP99: round(percentile(starts, 0.99)),
		EventP50: round(median(events)), EventP99: round(percentile(events, 0.99)), N: len(starts),
	}
	b.out.add("latency", benchRound{
		"createP50Ms": round(median(creates)), "createP99Ms": round(percentile(creates, 0.99)),
		"startMaxMs": round(percentile(starts, 1)), "eventMaxMs": round(percentile(events, 1)),
	})
	return nil
}

// single follows one task; all in milliseconds: the create call, from its answer
// to the handler's start (0 if that was earlier), and from there until the bus
// has acknowledged the completed event.
func (e *benchEngine) single(w *watch) (create, start, event float64, err error) {
	begun := time.Now()
	task, _, err := e.tasks.Create(e.b.ctx, benchRequest(jobs.Medium))
	answered := time.Now()
	if err != nil {
		return 0, 0, 0, err
	}
	late := time.After(benchPatience)
	for {
		select {
		case told := <-w.told:
			if told.task != task.TaskID.String() {
				continue
			}
			started := w.start(task.TaskID)
			return milliseconds(answered.Sub(begun)), max(0, milliseconds(started.Sub(answered))), milliseconds(told.at.Sub(started)), nil
		case <-late:
			return 0, 0, 0, fmt.Errorf("the figure is void: task %s was not told within %v", task.TaskID, benchPatience)
		case <-e.b.ctx.Done():
			return 0, 0, 0, context.Cause(e.b.ctx)
		}
	}
}

// ack says when the bus had a task's completed event.
type ack struct {
	task string
	at   time.Time
}

// watch is executor and publisher in one, and notes when each is done.
type watch struct {
	relay.Publisher
	automated.Noop
	told chan ack

	mu     sync.Mutex
	starts map[uuid.UUID]time.Time // guarded by mu
}

func (w *watch) start(id uuid.UUID) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts[id]
}

// Execute notes when it was called.
func (w *watch) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	at := time.Now()
	w.mu.Lock()
	w.starts[job.TaskID] = at
	w.mu.Unlock()
	return w.Noop.Execute(ctx, job)
}

// Publish notes when it came back.
func (w *watch) Publish(ctx context.Context, batch []outbox.Message) (uint64, error) {
	last, err := w.Publisher.Publish(ctx, batch)
	at := time.Now()
	for _, m := range batch {
		if err == nil && m.Subject == outbox.SubjectCompleted {
			w.told <- ack{m.Header["ce-subject"], at}
		}
	}
	return last, err
}
