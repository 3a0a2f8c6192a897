package peertest

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// The claims of every token of the platform.
const (
	Issuer   = "auth-service"
	Audience = "api"
)

// callerScopes are the scopes of each caller in the interface document.
var callerScopes = map[string][]string{
	"workflow-orchestrator": {"tasks:create", "tasks:define", "tasks:read", "tasks:update", "tasks:cancel", "tasks:pause"},
	"ui-framework":          {"tasks:read", "tasks:reassign", "tasks:update"},
	"monitoring-service":    {"tasks:metrics", "tasks:read"},
	"task-worker":           {"tasks:work", "tasks:read"},
	"error-handler":         {"tasks:deadletter", "tasks:read"},
}

// DefaultScopes are the scopes of a service's token by default; nil for a service that is no
// caller.
func DefaultScopes(service string) []string {
	return append([]string(nil), callerScopes[service]...)
}

// TokenOptions describe the token to mint.
type TokenOptions struct {
	Service     string         // service_name and client_id; default: none, a person's token
	Subject     string         // default: the service; required for a person's token
	Tenant      string         // default: none
	Scopes      []string       // default: DefaultScopes(Service)
	Roles       []string       // of a person; default: none
	Groups      []string       // of a person; default: none, and validate-token omits the member
	Permissions []string       // of a person; default: none
	TTL         time.Duration  // default: 1 h; negative: an expired token
	Claims      map[string]any // override all other claims; nil removes one
}

// Mint signs a token as the Auth Service would, with key id kid; default: KeyID of the key.
func Mint(key *ecdsa.PrivateKey, kid string, opts TokenOptions) (string, error) {
	if key == nil {
		return "", errors.New("mint token: no key")
	}

	if kid == "" {
		kid = KeyID(&key.PublicKey)
	}
	if opts.Subject == "" {
		opts.Subject = opts.Service
	}
	if opts.Subject == "" {
		return "", errors.New("mint token: neither a service nor a subject")
	}

	if opts.Scopes == nil {
		opts.Scopes = callerScopes[opts.Service]
	}
	if opts.TTL == 0 {
		opts.TTL = time.Hour
	}

	token := jwt.NewWithClaims(jwt.SigningMethodES256, opts.claims(time.Now()))
	token.Header["kid"] = kid
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("mint token: %w", err)
	}

	return signed, nil
}

func (opts TokenOptions) claims(now time.Time) jwt.MapClaims {
	issued := now
	if expiry := now.Add(opts.TTL); expiry.Before(issued) {
		// An expired token was valid before.
		issued = expiry.Add(-time.Minute)
	}

	claims := jwt.MapClaims{
		"iss":                Issuer,
		"aud":                Audience,
		"sub":                opts.Subject,
		"exp":                now.Add(opts.TTL).Unix(),
		"nbf":                issued.Unix(),
		"iat":                issued.Unix(),
		"jti":                uuid.NewString(),
		"scope":              strings.Join(opts.Scopes, " "),
		"is_service_account": opts.Service != "",
	}

	if opts.Service != "" {
		claims["service_name"] = opts.Service
		claims["client_id"] = opts.Service
	}

	if opts.Tenant != "" {
		claims["tenant_id"] = opts.Tenant
	}
	if opts.Roles != nil {
		claims["roles"] = opts.Roles
	}
	if opts.Groups != nil {
		claims["groups"] = opts.Groups
	}

	if opts.Permissions != nil {
		claims["permissions"] = opts.Permissions
	}

	for name, value := range opts.Claims {
		if value == nil {
			delete(claims, name)
		} else {
			claims[name] = value
		}
	}

	return claims
}

// Mint signs a token with the current signing key.
func (s *Server) Mint(opts TokenOptions) (string, error) {
	return Mint(s.Key(), "", opts)
}

// Token is a valid token of a caller, with its default scopes if none are given.
func (s *Server) Token(service string, scopes ...string) string {
	if len(scopes) == 0 {
		scopes = nil
	}
	token, err := s.Mint(TokenOptions{Service: service, Scopes: scopes})
	if err != nil {
		// Only for an empty service name.
		panic("peertest: " + err.Error())
	}
	return token
}
