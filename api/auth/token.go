// Package auth verifies service tokens (JWTs) with the public keys of the Auth Service.
//
// A Verifier checks form, signature and claims of a token and remembers valid tokens for a few
// minutes. The key set is fetched in the background and, within limits, when a token names an unknown
// key. While the Auth Service is unreachable the last key set stays in use; before the first fetch
// has succeeded, Verify returns an error that is no InvalidToken.
package auth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/maypok86/otter/v2"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// Caller is the caller that a verified service token names.
type Caller struct {
	Name    string // service_name
	Subject string // sub; empty: none
	Tenant  string // tenant_id; empty: none
	scopes  []string
}

// Holds returns whether the token has a scope.
func (c *Caller) Holds(scope string) bool { return slices.Contains(c.scopes, scope) }

// Config configures a Verifier. JWKS must be set.
type Config struct {
	// JWKS is the URL of the Auth Service's public keys.
	JWKS string
	// Issuer that a token must name; default: "auth-service".
	Issuer string
	// Audience that a token must name; default: "api".
	Audience string
	// Refresh is the interval between fetches of the keys; default: 2 minutes.
	Refresh time.Duration
	// MaxLife bounds the lifetime of a token from its issue to its expiry, or from now if it has no
	// iat; default: 24 hours.
	MaxLife time.Duration
	// Remembered bounds the number of remembered tokens; default: 10,000.
	Remembered int
	// Transport of the fetches; default: a clone of http.DefaultTransport.
	Transport http.RoundTripper
	// Logger; default: slog.Default.
	Logger *slog.Logger
}

// Verifier verifies service tokens with the Auth Service's public keys, without a request for each
// token. It can be created while the Auth Service is unreachable.
type Verifier struct {
	keys   *keySet
	find   keyfunc.Keyfunc
	parser *jwt.Parser
	life   time.Duration // the longest lifetime of a token
	good   *otter.Cache[[sha256.Size]byte, verified]
}

// verified is a valid token, and how long it may be remembered.
type verified struct {
	caller *Caller
	until  time.Time
}

// rememberFor bounds how long a remembered token outlives its signing key.
const rememberFor = 5 * time.Minute

// leeway is the tolerated difference between the platform's clocks.
const leeway = 30 * time.Second

// NewVerifier starts fetching the keys and does not wait for them. The caller must call Close.
func NewVerifier(cfg Config) (*Verifier, error) {
	if cfg.JWKS == "" {
		return nil, errors.New("verify tokens: no JWKS URL")
	}

	if cfg.Issuer == "" {
		cfg.Issuer = "auth-service"
	}
	if cfg.Audience == "" {
		cfg.Audience = "api"
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = 2 * time.Minute
	}

	if cfg.MaxLife == 0 {
		cfg.MaxLife = 24 * time.Hour
	}
	if cfg.Remembered == 0 {
		cfg.Remembered = 10_000
	}
	if cfg.Transport == nil {
		cfg.Transport = http.DefaultTransport.(*http.Transport).Clone()
	}

	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	good, err := otter.New(&otter.Options[[sha256.Size]byte, verified]{MaximumSize: cfg.Remembered})
	if err != nil {
		return nil, fmt.Errorf("verify tokens: %w", err)
	}

	// From here on a goroutine runs, so every error must close the key set.
	keys := newKeySet(cfg.JWKS, cfg.Transport, cfg.Refresh, cfg.Logger)
	find, err := keyfunc.New(keyfunc.Options{Ctx: keys.ctx, Storage: keys})
	if err != nil {
		keys.close()
		return nil, fmt.Errorf("verify tokens: %w", err)
	}

	return &Verifier{
		keys: keys, find: find, good: good, life: cfg.MaxLife,
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{"ES256", "RS256", "EdDSA"}), jwt.WithIssuer(cfg.Issuer), jwt.WithAudience(cfg.Audience),
			jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithStrictDecoding(),
		),
	}, nil
}

// Close stops the fetches.
func (v *Verifier) Close() { v.keys.close() }

// InvalidToken is the reason why a token is refused. Its text never quotes the token.
type InvalidToken string

func (b InvalidToken) Error() string { return "the token is not valid: " + string(b) }

// IsInvalid returns whether err is an InvalidToken. After other errors of Verify the token may be valid.
func IsInvalid(err error) bool {
	var invalid InvalidToken
	return errors.As(err, &invalid)
}

// Verify returns the caller that a token names. An error is an InvalidToken, or an outage: the keys are
// not known yet, or the Auth Service is late. After an outage the token may be valid.
func (v *Verifier) Verify(ctx context.Context, token string) (*Caller, error) {
	if len(token) > maxToken {
		return nil, InvalidToken("too long")
	}

	// On the stack, except for unusually long tokens.
	var room [2 << 10]byte
	sum := sha256.Sum256(append(room[:0], token...))
	if hit, ok := v.good.GetIfPresent(sum); ok {
		if time.Now().Before(hit.until) {
			return hit.caller, nil
		}
		v.good.Invalidate(sum)
	}

	// The form is checked before the expensive signature.
	if err := validForm(token); err != nil {
		return nil, err
	}

	var c claims
	if _, err := v.parser.ParseWithClaims(token, &c, v.find.KeyfuncCtx(ctx)); err != nil {
		return nil, reason(err)
	}

	caller, err := c.caller(v.life)
	if err != nil {
		return nil, err
	}

	// Never beyond its expiry, and not for long after its key is revoked.
	until := time.Now().Add(rememberFor)
	if c.expires.Before(until) {
		until = c.expires.Time
	}

	v.good.Set(sum, verified{caller, until})
	return caller, nil
}

// reason converts a parser's error to an InvalidToken or a key set error.
func reason(err error) error {
	// golang-jwt wraps the error of the key lookup.
	for _, unknown := range []error{errNoKeys, errKeysLate} {
		if errors.Is(err, unknown) {
			return unknown
		}
	}

	var bad InvalidToken
	if errors.As(err, &bad) {
		return bad
	}

	for _, known := range []struct {
		err  error
		word InvalidToken
	}{
		{jwt.ErrTokenExpired, "expired"},
		{jwt.ErrTokenNotValidYet, "not valid yet"},
		{jwt.ErrTokenUsedBeforeIssued, "issued in the future"},
		{jwt.ErrTokenInvalidAudience, "for a different audience"},
		{jwt.ErrTokenInvalidIssuer, "of a different issuer"},
		{jwt.ErrTokenRequiredClaimMissing, "a claim is missing"},
		{jwt.ErrTokenSignatureInvalid, "wrong signature"},
		{jwt.ErrTokenUnverifiable, "no key with this id and algorithm"},
	} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}

	return InvalidToken("malformed")
}

// Known returns whether a token was valid before and is still remembered. It costs no signature check.
func (v *Verifier) Known(token string) bool {
	if len(token) > maxToken {
		return false
	}
	_, ok := v.good.GetIfPresent(sha256.Sum256([]byte(token)))
	return ok
}

// maxToken is the longest token, in bytes, that Verify decodes.
const maxToken = 8 << 10

// validForm checks a token before golang-jwt decodes it. golang-jwt accepts repeated members, any
// depth, a missing kid and every critical extension.
func validForm(token string) error {
	first, rest, ok := strings.Cut(token, ".")
	second, third, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || first == "" || second == "" || third == "" || strings.IndexByte(third, '.') >= 0 {
		return InvalidToken("not three parts")
	}

	header, err := segment(first)
	if err != nil {
		return err
	}
	if _, err := segment(second); err != nil {
		return err
	}

	var members map[string]json.RawMessage
	// Unlike a struct, a map keeps the spelling of names.
	if err := json.Unmarshal(header, &members); err != nil {
		return InvalidToken("malformed")
	}

	// Names are compared in every case: golang-jwt ignores a header that another parser might obey.
	for name := range members {
		switch {
		case name == "crit" || name == "b64":
			// No critical extension is supported.
			return InvalidToken("a critical extension")
		case disguised(name, headerNames):
			return InvalidToken("a header's name in a different case")
		}
	}

	var kid, alg string
	if json.Unmarshal(members["kid"], &kid) != nil || kid == "" {
		return InvalidToken("no kid")
	}
	if json.Unmarshal(members["alg"], &alg) != nil || (alg != "ES256" && alg != "RS256" && alg != "EdDSA") {
		return InvalidToken("unsupported algorithm")
	}
	return nil
}

func segment(text string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || jsonguard.Check(raw) != nil || raw[0] != '{' {
		return nil, InvalidToken("malformed")
	}
	return raw, nil
}
