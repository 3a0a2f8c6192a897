package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
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
	started time.Time
	ended   time.Time
	output  json.RawMessage
	settled func(ok bool, err error) // called once; not ok: the lease was lost, or err: the database refused it

	event int64
	tried bool
}

// complete hands in a success. settled is called when it is written, by the
// flusher: it must not block.
func (t *Tasks) complete(c *completion) { t.completes.add(c) }

// flushCompletes writes a batch and settles each. The work is done, so a database
// that is away is sat out.
func (t *Tasks) flushCompletes(batch []*completion) {
	write := func() error {
		err := t.write(func(ctx context.Context) error { return t.writeCompletes(ctx, batch) })
		if away(err) {
			for _, c := range batch {
				c.tried = true
			}
		}
		return err
	}
	err := t.insist(t.givenUp, func(level slog.Level, err error, pause time.Duration) {
		t.cfg.Logger.Log(t.givenUp, level, "results wait for the database", "results", len(batch), "error", err, "again_in", pause)
	}, write(), write)
	switch {
	case err == nil:
		t.cfg.Told()
	case away(err): // given up
		for _, c := range batch {
			c.settled(false, err)
		}
	case len(batch) > 1:
		for _, c := range batch {
			t.flushCompletes([]*completion{c})
		}
	default:
		t.cfg.Logger.Error("a result was refused by the database", "task", batch[0].task, "error", err)
		batch[0].settled(false, err)
	}
}

func (t *Tasks) writeCompletes(ctx context.Context, batch []*completion) error {
	if batch[0].event == 0 {
		first, err := t.ids.events(ctx, 2*len(batch))
		if err != nil {
			return err
		}
		for i, c := range batch {
			c.event = first + int64(2*i)
		}
	}
	n := len(batch)
	p := db.TaskCompleteParams{
		ExecutorID: t.cfg.ProcessID,
		TaskIds:    make([]uuid.UUID, n), JobIds: make([]int64, n), Attempts: make([]int32, n), EventIds: make([]int64, n),
		Fused: make([]bool, n), StartedAts: make([]time.Time, n), EndedAts: make([]time.Time, n),
		Outputs: make([]string, n), Payloads: make([]string, n),
	}
	for i, c := range batch {
		p.TaskIds[i], p.JobIds[i], p.Attempts[i], p.EventIds[i] = c.task, c.job, c.attempt, c.event
		p.Fused[i], p.StartedAts[i], p.EndedAts[i] = c.fused, c.started, c.ended
		p.Outputs[i], p.Payloads[i] = string(c.output), summaryNote(c.output)
	}
	rows, err := t.q.TaskComplete(ctx, p)
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	done := make(map[int64]bool, len(rows))
	callsBack := false
	for _, row := range rows {
		done[row.JobID] = true
		callsBack = callsBack || row.CallsBack
	}
	if callsBack {
		t.cfg.CalledBack()
	}
	if len(rows) < n && batch[0].tried {
		if err := t.doneBefore(ctx, batch, done); err != nil {
			return err
		}
	}
	for _, c := range batch {
		c.settled(done[c.job], nil)
	}
	return nil
}

// doneBefore adds what an earlier flush committed whose answer was lost.
func (t *Tasks) doneBefore(ctx context.Context, batch []*completion, done map[int64]bool) error {
	events := make([]int64, len(batch))
	for i, c := range batch {
		events[i] = c.event + 1
	}
	found, err := t.found(ctx, events)
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
func completed(h held, output json.RawMessage) *move {
	return &move{
		task: h.task, wantJob: h.job, wantAttempt: h.attempt, want: []Status{Running},
		to: Completed, event: db.TaskEventTypeCompleted, actor: h.by, executor: h.by, at: now(), payload: summaryOf(output),
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
