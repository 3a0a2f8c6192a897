// Package once keeps an outage from filling the log: the same error is told once, and
// counted.
package once

import (
	"regexp"
	"sync"
	"time"
)

// mostKinds bounds how many different errors of one outage are remembered, and so told.
const mostKinds = 32

// Errors are those of one outage. The zero value is ready; it is safe for concurrent use.
type Errors struct {
	mu    sync.Mutex
	seen  map[string]bool // by gist; guarded by mu
	n     int             // guarded by mu
	since time.Time       // of the first; guarded by mu
}

// Note counts an error and says whether it is the first of its kind since Over. Errors
// that differ in numbers and ids alone are of one kind.
func (e *Errors) Note(err error) (first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == 0 {
		e.seen, e.since = map[string]bool{}, time.Now()
	}
	e.n++

	kind := gist(err.Error())
	if e.seen[kind] || len(e.seen) >= mostKinds {
		return false
	}
	e.seen[kind] = true
	return true
}

// Over ends the outage. It returns how many errors there were, and for how long; 0 where
// there was none.
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

// figures are numbers and ids.
var figures = regexp.MustCompile(`[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*`)

// gist is what errors of one kind have in common.
func gist(text string) string { return figures.ReplaceAllString(text, "#") }

// Count is how many errors there were since Over.
func (e *Errors) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}
