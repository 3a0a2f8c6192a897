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

// Caller is who asks, as a verified service token says it.
type Caller struct {
	Name    string // service_name
	Subject string // sub; empty for none
	Tenant  string // tenant_id; empty for none
	scopes  []string
}

// Holds says whether the caller was given a scope.
func (c *Caller) Holds(scope string) bool { return slices.Contains(c.scopes, scope) }

// Config says whose tokens are believed.
type Config struct {
	// JWKS is the URL of the Auth Service's public keys.
	JWKS string
	// Issuer that a token must name; default "auth-service".
	Issuer string
	// Audience that a token must name; default "api".
	Audience string
	// Refresh is how often the keys are fetched anew; default 2 min.
	Refresh time.Duration
	// MaxLife is the longest that a token may be good for, from its issue to its expiry;
	// of one that does not say when it was issued, from now. Default 24 h.
	MaxLife time.Duration
	// Remembered bounds how many verified tokens are kept; default 10,000.
	Remembered int
	// Transport of the fetches; default a clone of http.DefaultTransport.
	Transport http.RoundTripper
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Verifier tells good service tokens from bad ones, by the Auth Service's public
// keys and without asking it. It may be made while Auth is away.
type Verifier struct {
	keys   *keySet
	find   keyfunc.Keyfunc
	parser *jwt.Parser
	life   time.Duration // of a token, at most
	good   *otter.Cache[[sha256.Size]byte, verified]
}

// verified is a token that was good, and until when that may be remembered.
type verified struct {
	caller *Caller
	until  time.Time
}

// rememberFor bounds how long a token outlives the key that signed it.
const rememberFor = 5 * time.Minute

// leeway is how far the clocks of the platform may differ.
const leeway = 30 * time.Second

// NewVerifier begins to fetch the keys, and does not wait for them. Close it.
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

// Close ends the fetching.
func (v *Verifier) Close() { v.keys.close() }

// InvalidToken is the reason why a token is refused. Its text never quotes the token.
type InvalidToken string

func (b InvalidToken) Error() string { return "the token is not valid: " + string(b) }

// IsInvalid says whether err is an InvalidToken. Other errors of Verify say nothing of the token.
func IsInvalid(err error) bool {
	var invalid InvalidToken
	return errors.As(err, &invalid)
}

// Verify answers whose token it is. An error is a InvalidToken; or errNoKeys or errKeysLate,
// after which nothing is known of the token.
func (v *Verifier) Verify(ctx context.Context, token string) (*Caller, error) {
	if len(token) > maxToken {
		return nil, InvalidToken("too long")
	}
	var room [2 << 10]byte // on the stack, for all but absurd tokens
	sum := sha256.Sum256(append(room[:0], token...))
	if hit, ok := v.good.GetIfPresent(sum); ok {
		if time.Now().Before(hit.until) {
			return hit.caller, nil
		}
		v.good.Invalidate(sum)
	}
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
	until := time.Now().Add(rememberFor)
	if c.expires.Before(until) {
		until = c.expires.Time
	}
	v.good.Set(sum, verified{caller, until})
	return caller, nil
}

// reason puts a parser's error into our words.
func reason(err error) error {
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
		{jwt.ErrTokenInvalidAudience, "for another audience"},
		{jwt.ErrTokenInvalidIssuer, "of another issuer"},
		{jwt.ErrTokenRequiredClaimMissing, "a claim is missing"},
		{jwt.ErrTokenSignatureInvalid, "the signature is wrong"},
		{jwt.ErrTokenUnverifiable, "no key of that id and algorithm"},
	} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}
	return InvalidToken("malformed")
}

// Known says whether a token was valid before and is still remembered. It costs no signature check.
func (v *Verifier) Known(token string) bool {
	if len(token) > maxToken {
		return false
	}
	_, ok := v.good.GetIfPresent(sha256.Sum256([]byte(token)))
	return ok
}

// maxToken is the longest token, in bytes, that Verify decodes.
const maxToken = 8 << 10

// sane looks at a token before anything is decoded by golang-jwt, which takes
// repeated members, any depth, a missing kid and every critical extension.
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
	if err := json.Unmarshal(header, &members); err != nil { // a map's names are taken as they stand
		return InvalidToken("malformed")
	}
	for name := range members {
		switch {
		case name == "crit" || name == "b64": // whatever must be understood is not
			return InvalidToken("a critical extension")
		case disguised(name, headerNames):
			return InvalidToken("a header's name in another case")
		}
	}
	var kid, alg string
	if json.Unmarshal(members["kid"], &kid) != nil || kid == "" {
		return InvalidToken("no kid")
	}
	if json.Unmarshal(members["alg"], &alg) != nil || (alg != "ES256" && alg != "RS256" && alg != "EdDSA") {
		return InvalidToken("an algorithm that is not taken")
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
