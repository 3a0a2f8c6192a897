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

// The calling services, by their names in the interface document.
const (
	orchestrator = "workflow-orchestrator"
	ui           = "ui-framework"
	monitoring   = "monitoring-service"
	errorHandler = "error-handler"
)

// access is the condition for calling an operation: the callers in the interface document's Callers
// column, and the scope.
type access struct {
	scope   string
	or      string   // a scope that is accepted instead; empty: none
	callers []string // nil: every service with the scope
}

// Scopes lists the scopes of the service.
var Scopes = []string{
	"tasks:create", "tasks:define", "tasks:read", "tasks:update", "tasks:cancel", "tasks:reassign", "tasks:metrics", "tasks:work",
	"tasks:deadletter", scopePause,
}

// deadLetterAccess is the access to the dead-letter API.
var deadLetterAccess = by("tasks:deadletter", errorHandler)

// by is access for these callers only.
func by(scope string, callers ...string) access { return access{scope: scope, callers: callers} }

// anyone is access for every service with the scope.
func anyone(scope string) access { return access{scope: scope} }

// security is the access as the OpenAPI document describes it: any entry of the list is sufficient.
func (who access) security() []map[string][]string {
	all := []map[string][]string{{security: {who.scope}}}
	if who.or != "" {
		all = append(all, map[string][]string{security: {who.or}})
	}
	return all
}

func (who access) allows(c *auth.Caller) bool { return who.scoped(c) && who.named(c) }

// scoped returns whether the token has an accepted scope.
func (who access) scoped(c *auth.Caller) bool {
	return c.Holds(who.scope) || who.or != "" && c.Holds(who.or)
}

// named returns whether the caller is one of the operation's callers.
func (who access) named(c *auth.Caller) bool {
	return who.callers == nil || slices.Contains(who.callers, c.Name)
}

// gate decides who may call an operation, how often, and on behalf of which person.
type gate struct {
	verifier         *auth.Verifier
	userTokens       UserTokens
	requireUserToken bool
	limits           *limits
	refusals         *refusals
}

// admit is the middleware that checks the token of a request. admit runs before the body is read, so
// that unauthenticated callers cannot make the server hold a body.
func (g *gate) admit(who access) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, _ := humachi.Unwrap(ctx)
		c := callOf(r.Context())
		c.route = ctx.Operation().Path
		if p := g.check(c, r, who); p != nil {
			writeProblem(c, p)
			return
		}
		next(ctx)
	}
}

// guarded is admit for a handler that is not huma's.
func (g *gate) guarded(who access, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callOf(r.Context())
		if p := g.check(c, r, who); p != nil {
			writeProblem(c, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *gate) check(c *call, r *http.Request, who access) *Problem {
	// The response is the same for every malformed header. The log has the reason.
	token, ok := bearer(r)
	if !ok {
		c.refused = "no bearer token"
		return problem(http.StatusUnauthorized, codeUnauthorized, "send a service token: Authorization: Bearer …").with("WWW-Authenticate", `Bearer realm="tes"`)
	}

	caller, err := g.verify(c, r, token)
	var bad auth.InvalidToken
	if p, ok := asProblem(err); ok {
		return p
	}

	switch {
	case errors.As(err, &bad):
		// The reason goes to the log only: it would help to forge a token.
		c.refused = string(bad)
		return problem(http.StatusUnauthorized, codeUnauthorized, "the token is not valid").with("WWW-Authenticate", `Bearer realm="tes", error="invalid_token"`)
	case err != nil:
		// The keys are not known yet, or the Auth Service is late. The token may be valid, so a 401
		// would make the client throw it away.
		return unavailable("tokens cannot be verified yet").because(err)
	}
	// The caller is noted before the next checks, so that the log names refused callers.
	c.caller = caller
	if p := g.spend(c, 1, 0); p != nil {
		return p
	}

	if !who.allows(caller) {
		c.refused = "not allowed"
		return who.forbidden(caller, "the operation")
	}

	return nil
}

// forbidden is the response to a valid token without the necessary access. It names the missing
// scope and the accepted callers.
func (who access) forbidden(c *auth.Caller, what string) *Problem {
	var takes []string
	if !who.scoped(c) {
		scope := "the scope " + who.scope
		if who.or != "" {
			scope += " or " + who.or
		}
		takes = append(takes, scope)
	}

	// Both conditions are named, so that a client finds out both in one attempt.
	if !who.named(c) {
		takes = append(takes, "to be "+strings.Join(who.callers, " or "))
	}

	p := problem(http.StatusForbidden, codeForbidden, "this caller may not do this: "+what+" requires "+strings.Join(takes, ", and "))
	if !who.scoped(c) {
		return p.with("WWW-Authenticate", `Bearer realm="tes", error="insufficient_scope", scope="`+who.scope+`"`)
	}

	return p
}

// bearer is the token of the Authorization header. Two such headers are no token: a proxy might
// have looked at the other one.
func bearer(r *http.Request) (string, bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, found := strings.Cut(values[0], " ")
	return token, found && strings.EqualFold(scheme, "Bearer") && token != ""
}

// callerOf returns the caller of a request, never nil inside an operation.
func callerOf(ctx context.Context) *auth.Caller { return callOf(ctx).caller }
