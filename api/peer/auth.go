package peer

import (
	"context"
	"crypto/sha256"
	"net/http"
	"time"

	"github.com/maypok86/otter/v2"
)

// maxToken is the longest token, in bytes, that is sent to the Auth Service.
const maxToken = 8 << 10

// How long the result for a token is remembered, so that a person's next click needs no request: a
// valid token at most until it expires, an invalid one only briefly. After that an outage is an
// outage: no token is accepted because it used to be valid.
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

// knownToken is a remembered result. The token itself is not kept.
type knownToken struct {
	claims Claims
	until  time.Time
}

func newAuth(c *caller) *Auth {
	return &Auth{
		caller: c,
		known: otter.Must(&otter.Options[[sha256.Size]byte, knownToken]{
			MaximumSize: mostTokens,
			Executor:    func(fn func()) { fn() }, // runs maintenance in the caller's goroutine, so that none is left behind
		}),
	}
}

// Claims are the claims of a person's token. Unless Valid, all other fields are empty.
type Claims struct {
	Valid       bool      `json:"valid"`
	Subject     string    `json:"subject"`
	Roles       []string  `json:"roles"`
	Groups      []string  `json:"groups"` // empty where the Auth Service knows of none
	Permissions []string  `json:"permissions"`
	TenantID    string    `json:"tenantId"`
	ExpiresAt   time.Time `json:"expiresAt"` // zero if it was not said
}

// ValidateToken returns the claims of a person's token, as of at most a minute ago. An invalid
// token is not an error. After an error the token may be invalid and must not be accepted.
// Errors never contain the token.
func (c *Auth) ValidateToken(ctx context.Context, token string) (Claims, error) {
	// The Auth Service issues no such tokens, so no request is spent.
	if token == "" || len(token) > maxToken {
		return Claims{}, nil
	}

	// By hash, so that memory holds no credentials.
	key := sha256.Sum256([]byte(token))
	if past, found := c.known.GetIfPresent(key); found && time.Now().Before(past.until) {
		return past.claims, nil
	}

	// Remembered from the time of the question: the answer may have been computed at once.
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
		return Claims{}, refusal("INTEGRATION_ERROR", "the auth service returned a valid token without a subject")
	}

	return claims, nil
}
