package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"github.com/seed-3f7a0631/tes/jobs"
)

// UserTokens verifies people's tokens at the Auth Service.
type UserTokens interface {
	// Authenticate returns the person of a token; the zero Person for an invalid token. After an error
	// the token may be valid or invalid.
	Authenticate(ctx context.Context, token string) (Person, error)
}

// Person is the subject of a token.
type Person struct {
	Subject string // empty: the token is invalid
	Tenant  string // empty: none
	Roles   []string
	Groups  []string
}

// OnBehalf is a person's own token, besides the service's token. It is exported because huma
// ignores embedded unexported structs.
type OnBehalf struct {
	UserToken string `header:"X-User-Token" maxLength:"8192" doc:"The person's own token. If sent, the Auth Service must confirm that it belongs to the person and to the caller's tenant. The person then has exactly the roles and groups of the token. The service can be configured to require it."`
}

// forUser returns the person on whose behalf a request is made.
//
// Without a token of the person it is the person in the body (said), with the roles and groups in
// the body, and proven is false. With a token it is the token's person, with the roles and groups
// that the Auth Service returns. The body may select some of these roles and groups; others are
// refused, as are a different person and a person of another tenant. A body without a person means
// the token's person.
func (g *gate) forUser(ctx context.Context, in OnBehalf, said jobs.Person) (who jobs.Person, proven bool, err error) {
	if in.UserToken == "" {
		if g.requireUserToken {
			callOf(ctx).refused = "no user token"
			return jobs.Person{}, false, problem(http.StatusUnauthorized, codeUnauthorized, "the person's own token is required: X-User-Token").
				with("WWW-Authenticate", `Bearer realm="tes"`)
		}

		return said, false, nil
	}

	person, err := g.userTokens.Authenticate(ctx, in.UserToken)
	refused := func(why, detail string) *Problem {
		callOf(ctx).refused = why
		return problem(http.StatusForbidden, codeForbidden, "the token in X-User-Token "+detail)
	}

	switch {
	case err != nil:
		return jobs.Person{}, false, unavailable("user tokens cannot be verified now").because(err)
	case person.Subject == "":
		callOf(ctx).refused = "invalid user token"
		return jobs.Person{}, false, problem(http.StatusUnauthorized, codeUnauthorized, "the token in X-User-Token is not valid").
			with("WWW-Authenticate", `Bearer realm="tes", error="invalid_token"`)
	// Both tokens must agree: a service of one tenant must not act for a person of another.
	case person.Tenant != callerOf(ctx).Tenant:
		return jobs.Person{}, false, refused("another tenant's user token", "belongs to a different tenant than the caller")
	case said.ID != "" && person.Subject != said.ID:
		return jobs.Person{}, false, refused("another's user token", "belongs to a different person than userId")
	}

	// Roles and groups: the token's, or the subset that the body selects.
	who = jobs.Person{ID: person.Subject}
	for _, of := range []struct {
		place, one string
		asked, has []string
		to         *[]string
	}{
		{"body.roles", "role", said.Roles, person.Roles, &who.Roles},
		{"body.groups", "group", said.Groups, person.Groups, &who.Groups},
	} {
		// A body without the member means all of the token's.
		*of.to = of.has
		if of.asked == nil {
			continue
		}
		*of.to = of.asked
		for i, name := range of.asked {
			if !slices.Contains(of.has, name) {
				p := refused("more than the user token's "+of.one+"s", "does not give the person the "+of.one+" "+name)
				p.addViolation(of.place+"["+strconv.Itoa(i)+"]", "is not in the token")
				return jobs.Person{}, false, p
			}
		}
	}

	return who, true, nil
}

// noUserTokens refuses every person's token.
type noUserTokens struct{}

func (noUserTokens) Authenticate(context.Context, string) (Person, error) { return Person{}, nil }
