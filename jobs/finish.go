package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// completion is a success on its way through the batcher. A fused one carries its
// start with it: the attempt ran and ended before anything was written of it.
type completion struct {
	task    uuid.UUID
	job     int64
	attempt int32
	fused   bool
	started time.Time // by the process's clock, as ended
	ended   time.Time
	output  json.RawMessage
	settled func(ok bool, err error) // called once; not ok: the lease was lost, or err: the database refused it

	event int64
	tried bool
}

// complete hands in a success. settled is called when it is written, by the
// flusher: it must not block.
func (t *Tasks) complete(c *completion) { t.completes.add(c) }

// results is how completions are written. The work is done, so a database that is away
// is sat out.
func (t *Tasks) results() *group[*completion] {
	return &group[*completion]{
		t: t, b: t.completes, what: "results",
		row:    func(c *completion) any { return c.task },
		number: t.numberCompletes,
		write:  t.writeCompletes,
		excuse: func(batch []*completion, _ error) []*completion {
			for _, c := range batch {
				c.tried = true
			}
			return batch
		},
		waits:  func(*completion) waiting { return waiting{} },
		refuse: func(c *completion, err error) { c.settled(false, err) },
	}
}

// flushCompletes writes a batch and settles each. Every statement that locks several
// tasks locks them in the order of their ids: this one takes them as they come.
func (t *Tasks) flushCompletes(batch []*completion) {
	slices.SortFunc(batch, func(a, b *completion) int { return bytes.Compare(a.task[:], b.task[:]) })
	t.results().flush(batch)
}

// bytes is what a flush counts of a completion.
func (c *completion) bytes() int { return len(c.output) }

func (t *Tasks) numberCompletes(ctx context.Context, batch []*completion) error {
	fresh := 0
	for _, c := range batch {
		if c.event == 0 {
			fresh++
		}
	}
	event, err := t.ids.events(ctx, 2*fresh)
	if err != nil {
		return err
	}
	for _, c := range batch {
		if c.event == 0 {
			c.event = event
			event += 2
		}
	}
	return nil
}

func (t *Tasks) writeCompletes(ctx context.Context, on writer, batch []*completion) (answer func(context.Context), err error) {
	n := len(batch)
	p := db.TaskCompleteParams{
		ExecutorID: t.cfg.ProcessID,
		TaskIds:    make([]uuid.UUID, n), JobIds: make([]int64, n), Attempts: make([]int32, n), EventIds: make([]int64, n),
		Fused: make([]bool, n), EndedAgos: make([]int64, n), Rans: make([]int64, n),
		Outputs: make([]string, n), Payloads: make([]string, n),
	}
	tried := false
	for i, c := range batch {
		p.TaskIds[i], p.JobIds[i], p.Attempts[i], p.EventIds[i] = c.task, c.job, c.attempt, c.event
		p.Fused[i], p.EndedAgos[i], p.Rans[i] = c.fused, t.clock.since(c.ended).Microseconds(), c.ended.Sub(c.started).Microseconds()
		p.Outputs[i], p.Payloads[i] = string(c.output), summaryNote(c.output)
		tried = tried || c.tried
	}
	q := db.New(on)
	rows, err := q.TaskComplete(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	done := make(map[int64]bool, len(rows))
	callsBack := false
	for _, row := range rows {
		done[row.JobID] = true
		callsBack = callsBack || row.CallsBack
	}
	if len(rows) < n && tried {
		if err := doneBefore(ctx, q, batch, done); err != nil {
			return nil, err
		}
	}
	return func(context.Context) {
		t.cfg.Told()
		if callsBack {
			t.cfg.CalledBack()
		}
		for _, c := range batch {
			c.settled(done[c.job], nil)
		}
	}, nil
}

// doneBefore adds what an earlier flush committed whose answer was lost.
func doneBefore(ctx context.Context, q *db.Queries, batch []*completion, done map[int64]bool) error {
	events := make([]int64, len(batch))
	for i, c := range batch {
		events[i] = c.event + 1
	}
	found, err := found(ctx, q, events)
	if err != nil {
		return err
	}
	for _, c := range batch {
		if found[c.event+1] {
			done[c.job] = true
		}
	}
	return nil
}

// The bounds of an outputSummary.
const (
	summaryMembers = 32
	summaryText    = 256
)

// completed is the move after an attempt that succeeded elsewhere.
func completed(h held, output json.RawMessage, at time.Time) *move {
	return &move{
		task: h.task, wantJob: h.job, wantAttempt: h.attempt, want: []Status{Running},
		to: Completed, event: db.TaskEventTypeCompleted, actor: h.by, executor: h.by, at: at, payload: summaryOf(output),
		output: output, outcome: db.AttemptOutcomeCOMPLETED, endJob: db.RiverJobStateCompleted, timeout: h.settings.timeout, ends: h.ends,
	}
}

// summaryOf is summaryNote as a move's payload.
func summaryOf(output json.RawMessage) any {
	if note := summaryNote(output); note != "" {
		return json.RawMessage(note)
	}
	return nil
}

// summaryNote is the payload of a completed event: the output's short scalar
// members, as they are. Empty when there are none.
func summaryNote(output json.RawMessage) string {
	if len(output) <= 2 {
		return ""
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(output, &members) != nil {
		return ""
	}
	short := make(map[string]json.RawMessage, len(members))
	for name, value := range members {
		if len(short) < summaryMembers && len(value) <= summaryText && value[0] != '{' && value[0] != '[' {
			short[name] = value
		}
	}
	if len(short) == 0 {
		return ""
	}
	text, err := json.Marshal(map[string]any{"outputSummary": short})
	if err != nil {
		return ""
	}
	return string(text)
}
