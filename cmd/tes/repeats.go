package main

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
)

// While the database is unavailable every request and every loop logs its failure, thousands of
// times per second, and the log fills the disk. One line of each kind per repeatsEvery is enough,
// with the number of lines left out since the previous one.

// repeatsEvery is the interval between lines of one kind.
const repeatsEvery = 10 * time.Second

// mostRepeats bounds the number of remembered kinds.
const mostRepeats = 1000

// repeats is a slog.Handler that drops repeated lines of an outage.
type repeats struct {
	slog.Handler
	kinds *kinds
}

// kinds is shared by a handler and its derived handlers.
type kinds struct {
	now func() time.Time

	mu     sync.Mutex
	recent map[string]*repetition // guarded by mu
}

// repetition is the state of one kind.
type repetition struct {
	at      time.Time // of the last line
	leftOut int       // since the last line
}

func newRepeats(handler slog.Handler, now func() time.Time) *repeats {
	return &repeats{Handler: handler, kinds: &kinds{now: now, recent: map[string]*repetition{}}}
}

// WithAttrs implements slog.Handler.
func (r *repeats) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &repeats{Handler: r.Handler.WithAttrs(attrs), kinds: r.kinds}
}

// WithGroup implements slog.Handler.
func (r *repeats) WithGroup(name string) slog.Handler {
	return &repeats{Handler: r.Handler.WithGroup(name), kinds: r.kinds}
}

// Handle passes a line on unless a line of its kind was logged recently.
func (r *repeats) Handle(ctx context.Context, record slog.Record) error {
	kind := kindOfOutage(record)
	if kind == "" {
		return r.Handler.Handle(ctx, record)
	}

	leftOut, say := r.kinds.take(kind)
	if !say {
		return nil
	}

	if leftOut > 0 {
		record = record.Clone()
		record.AddAttrs(slog.Int("left_out", leftOut))
	}

	return r.Handler.Handle(ctx, record)
}

// take reports whether a line of a kind is due, and how many lines were left out before.
func (k *kinds) take(kind string) (leftOut int, say bool) {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	last := k.recent[kind]
	switch {
	case last == nil && len(k.recent) >= mostRepeats:
		return 0, true
	case last == nil:
		k.recent[kind] = &repetition{at: now}
		return 0, true
	case now.Sub(last.at) < repeatsEvery:
		last.leftOut++
		return 0, false
	}

	leftOut, last.at, last.leftOut = last.leftOut, now, 0
	return leftOut, true
}

// sqlState finds the SQLSTATE in an error's text, in pgx's format.
var sqlState = regexp.MustCompile(`SQLSTATE ([0-9A-Z]{5})`)

// outages are SQLSTATE classes and codes that concern the server and not the statement: connection,
// resources, operator intervention, system errors; read-only; lock timeout.
var outages = []string{"08", "53", "57", "58", "25006", "55P03"}

// kindOfOutage is the kind of an outage's line, and empty for any other line. The error's text is
// not part of the kind, because it may name a file, a row or a port.
func kindOfOutage(record slog.Record) string {
	if record.Level < slog.LevelWarn {
		return ""
	}

	// A kind is a message, a place (route, doing) and a SQLSTATE. Other attributes are left out: with
	// the task among them, each line would be a kind of its own.
	var failure, route, doing string
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "error":
			failure = a.Value.String()
		case "route":
			route = a.Value.String()
		case "doing":
			doing = a.Value.String()
		}

		return true
	})

	var code string
	switch found := sqlState.FindStringSubmatch(failure); {
	case failure == "":
		return ""
	case found != nil:
		if code = found[1]; !speaksOfServer(code) {
			return ""
		}
	case strings.Contains(failure, jobs.ErrUnavailable.Error()), strings.Contains(failure, "failed to connect to"):
		code = "no answer"
	default:
		return ""
	}

	return strings.Join([]string{record.Level.String(), record.Message, route, doing, code}, "\x00")
}

func speaksOfServer(code string) bool {
	for _, class := range outages {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}
