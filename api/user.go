package api

import (
	"context"
	"net/http"
)

// UserTokens is the Auth Service, which knows whose a person's token is.
type UserTokens interface {
	// Whose says whom the token is for; nobody for a token that is no good. After an
	// error nothing is known of it.
	Whose(ctx context.Context, token string) (Person, error)
}

// Person is whom a token is for.
type Person struct {
	Subject string // empty: nobody
	Tenant  string // empty for none
}

// OnBehalf is a person's own token, beside the service's. Exported, or huma would
// not look into it.
type OnBehalf struct {
	UserToken string `header:"X-User-Token" maxLength:"8192" doc:"The person's own token. Where it is sent, the Auth Service must know it as the person's, and of the caller's tenant; the service can be told to demand it."`
}

// forUser refuses what is asked for one person in another's name, or for another tenant's,
// and says whose token it was; empty without a token. An empty user is whoever has the token.
func (a *API) forUser(ctx context.Context, in OnBehalf, user string) (string, error) {
	if in.UserToken == "" {
		if a.cfg.RequireUserToken {
			callOf(ctx).refused = "no user token"
			return "", problem(http.StatusUnauthorized, codeUnauthorized, "send the person's own token too: X-User-Token").
				with("WWW-Authenticate", `Bearer realm="tes"`)
		}
		return "", nil
	}
	person, err := a.cfg.UserTokens.Whose(ctx, in.UserToken)
	switch {
	case err != nil:
		return "", unavailable("user tokens cannot be verified now").because(err)
	case person.Subject == "":
		callOf(ctx).refused = "bad user token"
		return "", problem(http.StatusUnauthorized, codeUnauthorized, "the token in X-User-Token is not valid").
			with("WWW-Authenticate", `Bearer realm="tes", error="invalid_token"`)
	case person.Tenant != callerOf(ctx).Tenant:
		callOf(ctx).refused = "another tenant's user token"
		return "", problem(http.StatusForbidden, codeForbidden, "the token in X-User-Token is of another tenant than the caller's")
	case user != "" && person.Subject != user:
		callOf(ctx).refused = "another's user token"
		return "", problem(http.StatusForbidden, codeForbidden, "the token in X-User-Token is another person's than userId")
	}
	return person.Subject, nil
}

// noUserTokens is a door without an Auth Service for people: no token is believed.
type noUserTokens struct{}

func (noUserTokens) Whose(context.Context, string) (Person, error) { return Person{}, nil }
