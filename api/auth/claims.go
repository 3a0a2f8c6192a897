package auth

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/tidwall/gjson"
)

// claims are the members of a token that Verify uses. They have a decoder of their own for two
// reasons: encoding/json matches names in any case, so that "EXP" would overwrite "exp", and
// golang-jwt accepts times that are strings.
type claims struct {
	issuer, subject            string
	audience                   []string
	expires, notBefore, issued *jwt.NumericDate // nil: absent
	scope, name, tenant        string
	service                    *bool // nil: absent
}

// The known names. Only this spelling is accepted.
var (
	headerNames = []string{"alg", "kid", "typ", "cty", "crit", "b64"}
	claimNames  = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope", "is_service_account", "service_name", "client_id", "tenant_id"}
)

// disguised returns whether a name is a known name in a different case. RFC 7519 says to ignore
// such a name. But another service, in another language, may take it for the claim itself, so a
// token with both spellings is an attack or a mistake.
func disguised(name string, known []string) bool {
	return !slices.Contains(known, name) && slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) })
}

// UnmarshalJSON decodes the claims for golang-jwt. The text has passed jsonguard.Check, so every
// name occurs once. An error is an InvalidToken.
func (c *claims) UnmarshalJSON(text []byte) error {
	doc := gjson.ParseBytes(text)
	if !doc.IsObject() {
		return InvalidToken("malformed")
	}

	// ForEach stops at the first error.
	var err error
	doc.ForEach(func(name, v gjson.Result) bool {
		err = c.take(name.Str, v)
		return err == nil
	})
	return err
}

// take reads one member. Null counts as absent.
func (c *claims) take(name string, v gjson.Result) error {
	if disguised(name, claimNames) {
		return InvalidToken("a claim's name in a different case")
	}

	if v.Type == gjson.Null {
		return nil
	}

	// Other claims are ignored, as RFC 7519 demands.
	switch name {
	case "iss":
		return takeText(v, &c.issuer)
	case "sub":
		return takeText(v, &c.subject)
	case "aud":
		return c.takeAudience(v)
	case "exp":
		return takeDate(v, &c.expires)
	case "nbf":
		return takeDate(v, &c.notBefore)
	case "iat":
		return takeDate(v, &c.issued)
	case "scope":
		return takeText(v, &c.scope)
	case "service_name":
		return takeText(v, &c.name)
	case "tenant_id":
		return takeText(v, &c.tenant)
	case "is_service_account":
		if !v.IsBool() {
			return InvalidToken("malformed")
		}
		is := v.Bool()
		c.service = &is
	}
	return nil
}

func takeText(v gjson.Result, to *string) error {
	if v.Type != gjson.String {
		return InvalidToken("malformed")
	}
	*to = v.Str
	return nil
}

// takeAudience reads a string or a list of strings.
func (c *claims) takeAudience(v gjson.Result) error {
	if v.Type == gjson.String {
		c.audience = []string{v.Str}
		return nil
	}

	if !v.IsArray() {
		return InvalidToken("malformed")
	}

	for _, one := range v.Array() {
		if one.Type != gjson.String {
			return InvalidToken("malformed")
		}
		c.audience = append(c.audience, one.Str)
	}

	return nil
}

// mostDigits is the number of digits of the seconds of year 9999.
const mostDigits = 12

// takeDate reads seconds since 1970 as plain digits. A fraction is allowed and ignored. A sign, an
// exponent or a string is refused.
func takeDate(v gjson.Result, to **jwt.NumericDate) error {
	// The raw text, because a float64 accepts exponents and rounds.
	whole, fraction, _ := strings.Cut(v.Raw, ".")
	const digits = "0123456789"
	if v.Type != gjson.Number || whole == "" || len(whole) > mostDigits || strings.Trim(whole+fraction, digits) != "" {
		return InvalidToken("a malformed time")
	}

	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return InvalidToken("a malformed time")
	}

	*to = jwt.NewNumericDate(time.Unix(seconds, 0))
	return nil
}

// The methods of jwt.Claims.

// GetExpirationTime returns exp.
func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.expires, nil }

// GetNotBefore returns nbf.
func (c *claims) GetNotBefore() (*jwt.NumericDate, error) { return c.notBefore, nil }

// GetIssuedAt returns iat.
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error) { return c.issued, nil }

// GetIssuer returns iss.
func (c *claims) GetIssuer() (string, error) { return c.issuer, nil }

// GetSubject returns sub.
func (c *claims) GetSubject() (string, error) { return c.subject, nil }

// GetAudience returns aud.
func (c *claims) GetAudience() (jwt.ClaimStrings, error) { return c.audience, nil }

// farFuture bounds expiries. Numbers beyond the range of time.Time would wrap around.
var farFuture = time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)

// lives is the lifetime of the token: from its issue, or from now if the token has no iat.
func (c *claims) lives() time.Duration {
	// Without iat the token's age is unknown; only the remaining life can be bounded.
	if c.issued != nil {
		return c.expires.Sub(c.issued.Time)
	}
	return time.Until(c.expires.Time) - leeway
}

// caller returns the caller of a verified token. An error is an InvalidToken.
func (c *claims) caller(maxLife time.Duration) (*Caller, error) {
	switch {
	case c.service != nil && !*c.service:
		// A person's token is valid at the Auth Service, and no credential of a service.
		return nil, InvalidToken("a person's token")
	case c.name == "":
		return nil, InvalidToken("no service_name")
	case c.expires.After(farFuture):
		return nil, InvalidToken("expires after year 3000")
	case c.lives() > maxLife:
		return nil, InvalidToken("lifetime too long")
	}
	return &Caller{Name: c.name, Subject: c.subject, Tenant: c.tenant, scopes: strings.Fields(c.scope)}, nil
}
