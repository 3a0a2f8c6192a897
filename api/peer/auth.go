package peer

import (
	"context"
	"net/http"
	"time"
)

// maxToken is the longest token that is worth a question.
const maxToken = 8 << 10

// Auth calls the Auth Service.
type Auth struct{ caller *caller }

// Claims is what the Auth Service says of a person's token. Without Valid the
// rest is empty.
type Claims struct {
	Valid       bool      `json:"valid"`
	Subject     string    `json:"subject"`
	Roles       []string  `json:"roles"`
	Permissions []string  `json:"permissions"`
	TenantID    string    `json:"tenantId"`
	ExpiresAt   time.Time `json:"expiresAt"` // zero if it was not said
}

// ValidateToken asks whether a person's token is good. A token that is not is
// no error; an error means that nothing is known of it, and the token must not
// be believed. The token is in none of the errors.
func (c *Auth) ValidateToken(ctx context.Context, token string) (Claims, error) {
	if token == "" || len(token) > maxToken {
		return Claims{}, nil
	}
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
