package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/seed-3f7a0631/tes/api/auth"
)

// The services that call us, by the interface document's names.
const (
	orchestrator = "workflow-orchestrator"
	ui           = "ui-framework"
	monitoring   = "monitoring-service"
	errorHandler = "error-handler"
)

// access says who may: the document's Callers column, and the scope.
type access struct {
	scope   string
	or      string   // another scope that will do; empty for none
	callers []string // nil: anyone who holds the scope
}

// Scopes are all that a token can be given.
var Scopes = []string{
	"tasks:create", "tasks:define", "tasks:read", "tasks:update", "tasks:cancel", "tasks:reassign", "tasks:metrics", "tasks:work",
	"tasks:deadletter", scopePause,
}

// desk is access to the dead letters, be it at their desk or by leases.
var desk = by("tasks:deadletter", errorHandler)

// by is access for these callers only.
func by(scope string, callers ...string) access { return access{scope: scope, callers: callers} }

// anyone is access for whoever holds the scope.
func anyone(scope string) access { return access{scope: scope} }

// security is the same in the document: any one of the list will do.
func (who access) security() []map[string][]string {
	all := []map[string][]string{{security: {who.scope}}}
	if who.or != "" {
		all = append(all, map[string][]string{security: {who.or}})
	}
	return all
}

func (who access) allows(c *auth.Caller) bool { return who.scoped(c) && who.named(c) }

// scoped says whether the token holds what is asked for.
func (who access) scoped(c *auth.Caller) bool {
	return c.Holds(who.scope) || who.or != "" && c.Holds(who.or)
}

// named says whether the caller is one of those who may.
func (who access) named(c *auth.Caller) bool {
	return who.callers == nil || slices.Contains(who.callers, c.Name)
}

// admit lets a request go on to its operation if its token says that it may. It
// comes before the body is read: strangers send nothing that we keep.
func (a *API) admit(who access) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, _ := humachi.Unwrap(ctx)
		c := callOf(r.Context())
		c.route = ctx.Operation().Path
		if p := a.check(c, r, who); p != nil {
			writeProblem(c, p)
			return
		}
		next(ctx)
	}
}

// guarded is admit for a handler that huma does not know.
func (a *API) guarded(who access, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callOf(r.Context())
		if p := a.check(c, r, who); p != nil {
			writeProblem(c, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *API) check(c *call, r *http.Request, who access) *Problem {
	token, ok := bearer(r)
	if !ok {
		c.refused = "no bearer token"
		return problem(http.StatusUnauthorized, codeUnauthorized, "send a service token: Authorization: Bearer …").with("WWW-Authenticate", `Bearer realm="tes"`)
	}
	caller, err := a.verify(c, r, token)
	var bad auth.InvalidToken
	if p, ok := asProblem(err); ok {
		return p
	}
	switch {
	case errors.As(err, &bad):
		c.refused = string(bad)
		return problem(http.StatusUnauthorized, codeUnauthorized, "the token is not valid").with("WWW-Authenticate", `Bearer realm="tes", error="invalid_token"`)
	case err != nil:
		return unavailable("tokens cannot be verified yet").because(err)
	}
	c.caller = caller
	if p := a.spend(c, 1, 0); p != nil {
		return p
	}
	if !who.allows(caller) {
		c.refused = "not allowed"
		return who.forbidden(caller, "to do this")
	}
	return nil
}

// forbidden is the answer to a good token that is the wrong one: it names what was missing.
func (who access) forbidden(c *auth.Caller, what string) *Problem {
	var takes []string
	if !who.scoped(c) {
		scope := "the scope " + who.scope
		if who.or != "" {
			scope += " or " + who.or
		}
		takes = append(takes, scope)
	}
	if !who.named(c) {
		takes = append(takes, "to be "+strings.Join(who.callers, " or "))
	}
	p := problem(http.StatusForbidden, codeForbidden, "this caller may not: "+what+" takes "+strings.Join(takes, ", and "))
	if !who.scoped(c) {
		return p.with("WWW-Authenticate", `Bearer realm="tes", error="insufficient_scope", scope="`+who.scope+`"`)
	}
	return p
}

// bearer is the token of the one Authorization header.
func bearer(r *http.Request) (string, bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, found := strings.Cut(values[0], " ")
	return token, found && strings.EqualFold(scheme, "Bearer") && token != ""
}

// callerOf is who asks. Operations only run for somebody.
func callerOf(ctx context.Context) *auth.Caller { return callOf(ctx).caller }
