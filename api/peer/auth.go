package peer

import (
	"context"
	"crypto/sha256"
	"net/http"
	"time"

	"github.com/maypok86/otter/v2"
)

// maxToken is the longest token that is worth a question.
const maxToken = 8 << 10

// What the Auth Service said of a token is gone by for a while, so that a person's next
// click does not ask again: a good token at most until it expires, and a bad one hardly.
// After that an outage is an outage: nobody is believed for having been known.
const (
	believedFor    = time.Minute
	disbelievedFor = 3 * time.Second
	mostTokens     = 10_000
)

// Auth calls the Auth Service.
type Auth struct {
	caller *caller
	known  *otter.Cache[[sha256.Size]byte, knownToken]
}

// knownToken is a past answer. The token itself is not kept.
type knownToken struct {
	claims Claims
	until  time.Time
}

func newAuth(c *caller) *Auth {
	return &Auth{
		caller: c,
		known: otter.Must(&otter.Options[[sha256.Size]byte, knownToken]{
			MaximumSize: mostTokens,
			Executor:    func(fn func()) { fn() }, // leaves no goroutine behind
		}),
	}
}

// Claims is what the Auth Service says of a person's token. Without Valid the
// rest is empty.
type Claims struct {
	Valid       bool      `json:"valid"`
	Subject     string    `json:"subject"`
	Roles       []string  `json:"roles"`
	Groups      []string  `json:"groups"` // empty where the Auth Service knows of none
	Permissions []string  `json:"permissions"`
	TenantID    string    `json:"tenantId"`
	ExpiresAt   time.Time `json:"expiresAt"` // zero if it was not said
}

// ValidateToken tells whether a person's token is good, as of at most a minute ago. A
// token that is not is no error; an error means that nothing is known of it, and the
// token must not be believed. The token is in none of the errors.
func (c *Auth) ValidateToken(ctx context.Context, token string) (Claims, error) {
	if token == "" || len(token) > maxToken {
		return Claims{}, nil
	}
	key := sha256.Sum256([]byte(token))
	if past, found := c.known.GetIfPresent(key); found && time.Now().Before(past.until) {
		return past.claims, nil
	}
	asked := time.Now()
	claims, err := c.ask(ctx, token)
	if err != nil {
		return Claims{}, err
	}
	until := asked.Add(disbelievedFor)
	if claims.Valid {
		until = asked.Add(believedFor)
		if !claims.ExpiresAt.IsZero() && claims.ExpiresAt.Before(until) {
			until = claims.ExpiresAt
		}
	}
	c.known.Set(key, knownToken{claims, until})
	return claims, nil
}

func (c *Auth) ask(ctx context.Context, token string) (Claims, error) {
	var claims Claims
	err := c.caller.call(ctx, question{
		method: http.MethodPost,
		path:   "/api/auth/validate-token",
		body: struct {
			Token string `json:"token"`
		}{token},
	}, &claims)
	if err != nil || !claims.Valid {
		return Claims{}, err
	}
	if claims.Subject == "" {
		return Claims{}, refusal("INTEGRATION_ERROR", "the auth service calls a token valid and does not say whose it is")
	}
	return claims, nil
}
