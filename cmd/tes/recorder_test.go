package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/check"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// logged is one row of the log, and the id it has on the bus.
type logged struct {
	Task uuid.UUID
	Seq  int32
	Type string
	Now  string
}

func (l logged) id() string { return outbox.EventID(l.Task, l.Seq).String() }

func (l logged) subject() string {
	if l.Type == "assigned" {
		return outbox.SubjectAssigned
	}
	return "task." + l.Type
}

// recorder is a consumer with a perfect memory.
type recorder struct {
	mu        sync.Mutex
	first     map[string]*delivery // by event id; guarded by mu
	order     map[string][]string  // ce-sequence of first deliveries, by task; guarded by mu
	stream    map[uint64]string    // event id at each place of the stream; guarded by mu
	repeated  int                  // guarded by mu
	different []string             // what a repetition said otherwise; guarded by mu
	lines     []check.Received     // everything, in the order of receipt; guarded by mu
}

type delivery struct {
	outbox.Delivery
	seq uint64
}

func newRecorder() *recorder {
	return &recorder{first: map[string]*delivery{}, order: map[string][]string{}, stream: map[uint64]string{}}
}

func (r *recorder) hear(d outbox.Delivery, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, task := d.Header["ce-id"], d.Header["ce-subject"]
	sum := sha256.Sum256(d.Body)
	line := check.Received{Subject: d.Subject, SHA256: hex.EncodeToString(sum[:])}
	line.ID, _ = uuid.Parse(id) // nil is refused when the ledger is read
	line.Task, _ = uuid.Parse(task)
	_, _ = fmt.Sscanf(d.Header["ce-sequence"], "%010d", &line.Seq)
	r.lines = append(r.lines, line)
	if before, found := r.stream[seq]; found && before != id {
		r.different = append(r.different, fmt.Sprintf("at %d of the stream stood %s, now %s", seq, before, id))
	} else if !found {
		r.stream[seq] = id
	}
	before, found := r.first[id]
	if !found {
		r.first[id] = &delivery{d, seq}
		r.order[task] = append(r.order[task], d.Header["ce-sequence"])
		return
	}
	if before.seq != seq {
		r.repeated++ // told twice, not read twice
	}
	if before.Subject != d.Subject || !bytes.Equal(before.Body, d.Body) || before.Header["ce-sequence"] != d.Header["ce-sequence"] {
		r.different = append(r.different, fmt.Sprintf("%s: %s %s, then %s %s", id, before.Subject, before.Body, d.Subject, d.Body))
	}
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.first)
}

// hearAll waits until so many events were heard.
func (r *recorder) hearAll(t *testing.T, events int) {
	t.Helper()
	r.hearBy(t, patience, events)
}

func (r *recorder) hearBy(t *testing.T, within time.Duration, events int) {
	t.Helper()
	eventually(t, within, func() error {
		if heard := r.count(); heard < events {
			return fmt.Errorf("%d of %d events are on the bus", heard, events)
		}
		return nil
	})
}

// hearTail waits until all was heard that a bus has.
func (r *recorder) hearTail(t *testing.T, bus *natsbus.Bus) {
	t.Helper()
	last, _, err := bus.Tail(t.Context())
	require.NoError(t, err)
	eventually(t, patience, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if heard := uint64(len(r.stream)); heard < last {
			return fmt.Errorf("%d of %d events of the stream were heard", heard, last)
		}
		return nil
	})
}

// write writes the ledger that tes check reads.
func (r *recorder) write(t *testing.T) (file string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var text bytes.Buffer
	for _, line := range r.lines {
		require.NoError(t, json.NewEncoder(&text).Encode(line))
	}
	file = filepath.Join(t.TempDir(), "ledger")
	require.NoError(t, os.WriteFile(file, text.Bytes(), 0o600))
	return file
}

// check holds what was heard of so many tasks against the log, and returns how
// often something was told twice.
func (r *recorder) check(t *testing.T, log map[string]logged, tasks int) int {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.different, "a repetition is the same to the byte")
	ends := map[string]int{}
	for id, d := range r.first {
		row, found := log[id]
		require.True(t, found, "%s was told and never happened: %s", id, d.Body)
		require.Equal(t, row.subject(), d.Subject, id)
		require.Equal(t, row.Task.String(), d.Header["ce-subject"], id)
		require.Equal(t, fmt.Sprintf("%010d", row.Seq), d.Header["ce-sequence"], id)
		var event outbox.Envelope[struct {
			TaskID string `json:"taskId"`
		}]
		require.NoError(t, json.Unmarshal(d.Body, &event), id)
		require.Equal(t, id, event.ID)
		require.Equal(t, row.Task.String(), event.Data.TaskID)
		switch d.Subject {
		case outbox.SubjectCompleted, outbox.SubjectFailed, outbox.SubjectCanceled:
			ends[event.Data.TaskID]++
		}
	}
	for id, row := range log {
		require.NotNil(t, r.first[id], "%+v is not on the bus", row) // Contains would look through all, for each
	}
	require.Len(t, ends, tasks)
	for task, n := range ends {
		require.Equal(t, 1, n, "task %s has ended %d times", task, n)
	}
	for task, sequence := range r.order {
		require.True(t, slices.IsSorted(sequence), "task %s was told out of order: %v", task, sequence)
		require.Len(t, slices.Compact(slices.Clone(sequence)), len(sequence))
	}
	return r.repeated
}
