// Package once keeps an outage from filling the log: each kind of error is logged once, and all
// errors are counted.
package once

import (
	"regexp"
	"sync"
	"time"
)

// maxKinds bounds how many kinds of errors of one outage are remembered and logged.
const maxKinds = 32

// Errors are the errors of one outage. The zero value is ready; safe for concurrent use.
type Errors struct {
	mu    sync.Mutex
	seen  map[string]bool // by kind; guarded by mu
	n     int             // guarded by mu
	since time.Time       // of the first error; guarded by mu
}

// Note counts an error and reports whether it is the first of its kind since Over. Errors that
// differ in numbers and ids only are of one kind.
func (e *Errors) Note(err error) (first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()

	if e.n == 0 {
		e.seen, e.since = map[string]bool{}, time.Now()
	}

	e.n++

	kind := kindOf(err.Error())
	// An outage with an error for each task must not fill the log either; hence maxKinds.
	if e.seen[kind] || len(e.seen) >= maxKinds {
		return false
	}

	e.seen[kind] = true
	return true
}

// Over ends the outage. The result is how many errors there were, and the time since the first;
// 0 if there was none.
func (e *Errors) Over() (n int, lasted time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()

	if e.n == 0 {
		return 0, 0
	}

	n, lasted = e.n, time.Since(e.since)
	e.n, e.seen = 0, nil
	return n, lasted
}

// Count returns how many errors there were since Over.
func (e *Errors) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()

	return e.n
}

// figures matches numbers and ids.
var figures = regexp.MustCompile(`[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*`)

// kindOf returns the text that errors of one kind share.
func kindOf(text string) string { return figures.ReplaceAllString(text, "#") }
