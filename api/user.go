package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"github.com/seed-3f7a0631/tes/jobs"
)

// UserTokens is the Auth Service, which knows whose a person's token is.
type UserTokens interface {
	// Authenticate says whom the token is for; nobody for a token that is no good. After an
	// error nothing is known of it.
	Authenticate(ctx context.Context, token string) (Person, error)
}

// Person is whom a token is for, and all that they are.
type Person struct {
	Subject string // empty: nobody
	Tenant  string // empty for none
	Roles   []string
	Groups  []string
}

// OnBehalf is a person's own token, beside the service's. Exported, or huma would
// not look into it.
type OnBehalf struct {
	UserToken string `header:"X-User-Token" maxLength:"8192" doc:"The person's own token. If sent, the Auth Service must confirm that it belongs to the person and to the caller's tenant. The person then has exactly the roles and groups of the token. The service can be configured to require it."`
}

// forUser is who asks. Without a token of the person's own it is whom the body names, with
// the roles and groups that it says they have, and proven is false. With one it is whose
// token it is, with the roles and groups that the Auth Service answers; a body may ask for
// fewer of them, and what it asks for beyond them is refused, as is another person and
// another tenant's. A body that names nobody is about whoever has the token.
func (a *API) forUser(ctx context.Context, in OnBehalf, said jobs.Person) (who jobs.Person, proven bool, err error) {
	if in.UserToken == "" {
		if a.cfg.RequireUserToken {
			callOf(ctx).refused = "no user token"
			return jobs.Person{}, false, problem(http.StatusUnauthorized, codeUnauthorized, "send the person's own token too: X-User-Token").
				with("WWW-Authenticate", `Bearer realm="tes"`)
		}
		return said, false, nil
	}
	person, err := a.cfg.UserTokens.Authenticate(ctx, in.UserToken)
	refused := func(why, detail string) *Problem {
		callOf(ctx).refused = why
		return problem(http.StatusForbidden, codeForbidden, "the token in X-User-Token "+detail)
	}
	switch {
	case err != nil:
		return jobs.Person{}, false, unavailable("user tokens cannot be verified now").because(err)
	case person.Subject == "":
		callOf(ctx).refused = "bad user token"
		return jobs.Person{}, false, problem(http.StatusUnauthorized, codeUnauthorized, "the token in X-User-Token is not valid").
			with("WWW-Authenticate", `Bearer realm="tes", error="invalid_token"`)
	case person.Tenant != callerOf(ctx).Tenant:
		return jobs.Person{}, false, refused("another tenant's user token", "is of another tenant than the caller's")
	case said.ID != "" && person.Subject != said.ID:
		return jobs.Person{}, false, refused("another's user token", "is another person's than userId")
	}

	who = jobs.Person{ID: person.Subject}
	for _, of := range []struct {
		place, one string
		asked, has []string
		to         *[]string
	}{
		{"body.roles", "role", said.Roles, person.Roles, &who.Roles},
		{"body.groups", "group", said.Groups, person.Groups, &who.Groups},
	} {
		*of.to = of.has
		if of.asked == nil {
			continue
		}
		*of.to = of.asked
		for i, name := range of.asked {
			if !slices.Contains(of.has, name) {
				p := refused("more than the user token's "+of.one+"s", "does not give the person the "+of.one+" "+name)
				p.addViolation(of.place+"["+strconv.Itoa(i)+"]", "is none of the token's")
				return jobs.Person{}, false, p
			}
		}
	}
	return who, true, nil
}

// noUserTokens is a door without an Auth Service for people: no token is believed.
type noUserTokens struct{}

func (noUserTokens) Authenticate(context.Context, string) (Person, error) { return Person{}, nil }
