package peertest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func (s *Server) jwks(w http.ResponseWriter, _ *http.Request, _ Steering) {
	keys := []map[string]string{}
	for _, key := range s.keys.all() {
		x, y := coordinates(&key.PublicKey)
		keys = append(keys, map[string]string{
			"kty": "EC", "crv": "P-256", "x": x, "y": y,
			"kid": KeyID(&key.PublicKey), "alg": "ES256", "use": "sig",
		})
	}

	writeJSON(w, http.StatusOK, map[string]any{"keys": keys})
}

// verdict is the response of validate-token.
type verdict struct {
	Valid       bool       `json:"valid"`
	Subject     string     `json:"subject,omitempty"`
	Roles       []string   `json:"roles"`
	Groups      []string   `json:"groups,omitempty"`
	Permissions []string   `json:"permissions"`
	TenantID    string     `json:"tenantId,omitempty"`
	ExpiresAt   *time.Time `json:"expiresAt,omitempty"`
}

// userClaims are the claims of a person's token.
type userClaims struct {
	jwt.RegisteredClaims
	Scope       string   `json:"scope"`
	TenantID    string   `json:"tenant_id"`
	Roles       []string `json:"roles"`
	Groups      []string `json:"groups"`
	Permissions []string `json:"permissions"`
}

func (s *Server) validateToken(w http.ResponseWriter, r *http.Request, _ Steering) {
	var asked struct {
		Token string `json:"token"`
	}

	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Token == "" {
		writeError(w, http.StatusBadRequest, "VALIDATION_ERROR", "a token is asked for")
		return
	}

	claims, err := s.verify(asked.Token)
	if err != nil {
		// An invalid token is a valid question: the response is a 200.
		writeJSON(w, http.StatusOK, verdict{Roles: []string{}, Permissions: []string{}})
		return
	}

	permissions := claims.Permissions
	if permissions == nil {
		permissions = strings.Fields(claims.Scope)
	}

	expiry := claims.ExpiresAt.UTC()
	writeJSON(w, http.StatusOK, verdict{
		Valid:       true,
		Subject:     claims.Subject,
		Roles:       append([]string{}, claims.Roles...),
		Groups:      claims.Groups,
		Permissions: append([]string{}, permissions...),
		TenantID:    claims.TenantID,
		ExpiresAt:   &expiry,
	})
}

func (s *Server) verify(token string) (*userClaims, error) {
	claims := &userClaims{}
	_, err := jwt.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		for _, key := range s.keys.all() {
			if t.Header["kid"] == KeyID(&key.PublicKey) {
				return &key.PublicKey, nil
			}
		}

		return nil, errors.New("unknown key")
	}, jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(Issuer), jwt.WithAudience(Audience), jwt.WithExpirationRequired())
	return claims, err
}
