package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Mount adds a handler behind the API's log, panic handler and request ids. Cross-origin requests
// of browsers are refused.
type Mount struct {
	// Prefix begins with a slash and ends without a slash, such as /riverui.
	Prefix string
	// Handler gets the whole path, including Prefix.
	Handler http.Handler
	// Scope that a service token must have; empty: Handler checks for itself.
	Scope string
	// Login lets people log in with a browser; default: none, and the handler is open to everybody.
	Login *Login
	// RiverUI marks River UI, whose actions on jobs become operations on their tasks; default: false.
	RiverUI bool
}

// mounts are the further handlers of an API server.
type mounts []Mount

// validate refuses prefixes that the router would treat differently than has, or that would hide
// operations.
func (all mounts) validate() error {
	for _, m := range all {
		if !strings.HasPrefix(m.Prefix, "/") || strings.HasSuffix(m.Prefix, "/") || strings.HasPrefix(m.Prefix, "/api") || m.Handler == nil {
			return fmt.Errorf("api: cannot mount at %q", m.Prefix)
		}
	}
	return nil
}

// has returns whether a path belongs to a mount.
func (all mounts) has(path string) bool {
	for _, m := range all {
		if rest, ok := strings.CutPrefix(path, m.Prefix); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// mount registers a mount. The outermost check comes last: token, frames and origin, login, River
// UI's actions.
func (a *API) mount(m Mount, tasks *jobs.Tasks) {
	h := m.Handler
	if m.RiverUI {
		h = (&riverUI{tasks, m.Prefix}).operated(h)
	}
	if m.Login != nil {
		h = (&browserLogin{a.gate, m}).required(h)
	}

	h = unframed(http.NewCrossOriginProtection().Handler(h))
	if m.Scope != "" {
		h = a.gate.guarded(anyone(m.Scope), h)
	}

	// One route name for all paths of the mount, for the log and the span.
	named := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		callOf(r.Context()).route = m.Prefix + "/*"
		h.ServeHTTP(w, r)
	})
	a.router.Handle(m.Prefix, named)
	a.router.Handle(m.Prefix+"/*", named)
}
