package bench

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

// latency sends single tasks into an idle service with default settings, 40 to 160 ms apart, so
// that the tasks meet every phase of the service's polls.
func (b *suite) latency() (err error) {
	e, err := b.engine()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, e.close()) }()
	bus, err := e.bus()
	if err != nil {
		return err
	}

	// w sees both ends of a task: the executor's call and the acknowledgement of the event.
	w := &watch{Publisher: bus, starts: map[uuid.UUID]time.Time{}, acks: make(chan ack, 16)}
	e.publish(w)
	stop := e.run(w, jobs.RunnerConfig{})
	defer func() { err = errors.Join(err, stop()) }()
	b.step(b.size.single, "latency")

	const warm = 5 // the first tasks meet new connections and statements without a plan
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

	b.out.Latency = &latencyResult{
		StartP50: rounded(median(starts)), StartP99: rounded(percentile(starts, 0.99)),
		EventP50: rounded(median(events)), EventP99: rounded(percentile(events, 0.99)), N: len(starts),
	}

	b.out.add("latency", roundFigures{
		"createP50Ms": rounded(median(creates)), "createP99Ms": rounded(percentile(creates, 0.99)),
		"startMaxMs": rounded(percentile(starts, 1)), "eventMaxMs": rounded(percentile(events, 1)),
	})
	return nil
}

// single follows one task. All results are in milliseconds: the create call; from the create's
// return to the handler's start, 0 if the handler started earlier; from the handler's start to the
// bus's acknowledgement of the completed event.
func (e *engine) single(w *watch) (create, start, event float64, err error) {
	begun := time.Now()
	task, _, err := e.tasks.Create(e.b.ctx, taskRequest(jobs.Medium))
	answered := time.Now()
	if err != nil {
		return 0, 0, 0, err
	}

	// Acknowledgements of an earlier task may still be in the channel.
	late := time.After(patience)
	for {
		select {
		case acked := <-w.acks:
			if acked.task != task.TaskID.String() {
				continue
			}
			started := w.start(task.TaskID)
			return milliseconds(answered.Sub(begun)), max(0, milliseconds(started.Sub(answered))), milliseconds(acked.at.Sub(started)), nil
		case <-late:
			return 0, 0, 0, fmt.Errorf("the figure is void: the end of task %s was not published within %v", task.TaskID, patience)
		case <-e.b.ctx.Done():
			return 0, 0, 0, context.Cause(e.b.ctx)
		}
	}
}

// ack is the time at which the bus acknowledged a task's completed event.
type ack struct {
	task string
	at   time.Time
}

// watch is executor and publisher in one, and notes the time of both.
type watch struct {
	relay.Publisher
	automated.Noop
	acks chan ack

	mu     sync.Mutex
	starts map[uuid.UUID]time.Time // guarded by mu
}

func (w *watch) start(id uuid.UUID) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts[id]
}

// Execute notes the start.
func (w *watch) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	at := time.Now()
	w.mu.Lock()
	w.starts[job.TaskID] = at
	w.mu.Unlock()
	return w.Noop.Execute(ctx, job)
}

// Publish notes the acknowledgement.
func (w *watch) Publish(ctx context.Context, batch []outbox.Message) (uint64, error) {
	last, err := w.Publisher.Publish(ctx, batch)
	at := time.Now()
	for _, m := range batch {
		if err == nil && m.Subject == outbox.SubjectCompleted {
			w.acks <- ack{m.Header["ce-subject"], at}
		}
	}
	return last, err
}
