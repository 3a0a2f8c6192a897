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

// While the database is away every request and every loop says so, thousands of times a
// second, and the log fills the disk that is left. One line of each kind in repeatsEvery is
// enough, with the number of those that were left out since the one before.

// repeatsEvery spaces the lines of one kind.
const repeatsEvery = 10 * time.Second

// mostRepeats bounds the kinds that are remembered.
const mostRepeats = 1000

// repeats is a slog.Handler that leaves out lines of an outage that was told a moment ago.
type repeats struct {
	slog.Handler
	kinds *kinds
}

// kinds are shared by a handler and those that were made from it.
type kinds struct {
	now func() time.Time

	mu   sync.Mutex
	said map[string]*saying // guarded by mu
}

// saying is one kind of line.
type saying struct {
	at      time.Time // of the last line
	leftOut int       // since then
}

func newRepeats(handler slog.Handler, now func() time.Time) *repeats {
	return &repeats{Handler: handler, kinds: &kinds{now: now, said: map[string]*saying{}}}
}

// WithAttrs is part of slog.Handler.
func (r *repeats) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &repeats{Handler: r.Handler.WithAttrs(attrs), kinds: r.kinds}
}

// WithGroup is part of slog.Handler.
func (r *repeats) WithGroup(name string) slog.Handler {
	return &repeats{Handler: r.Handler.WithGroup(name), kinds: r.kinds}
}

// Handle passes a line on, unless it is one more of a kind that was told a moment ago.
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

// take says whether a line of a kind is due, and how many were left out before it.
func (k *kinds) take(kind string) (leftOut int, say bool) {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	last := k.said[kind]
	switch {
	case last == nil && len(k.said) >= mostRepeats:
		return 0, true
	case last == nil:
		k.said[kind] = &saying{at: now}
		return 0, true
	case now.Sub(last.at) < repeatsEvery:
		last.leftOut++
		return 0, false
	}
	leftOut, last.at, last.leftOut = last.leftOut, now, 0
	return leftOut, true
}

// sqlState finds the code of an error that the server returned, as pgx writes it.
var sqlState = regexp.MustCompile(`SQLSTATE ([0-9A-Z]{5})`)

// outages are the classes of SQLSTATEs, and the codes, that speak of the server and not of
// the statement: connection, resources, operators, system; read-only; a lock; a limit.
var outages = []string{"08", "53", "57", "58", "25006", "55P03"}

// kindOfOutage is what a line has in common with others of the same outage; empty for every
// other line. The text of the error is no part of it: it may name a file, a row or a port.
func kindOfOutage(record slog.Record) string {
	if record.Level < slog.LevelWarn {
		return ""
	}
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
