package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/auth/authtest"
)

// TestBadTokens is the attack table: none of them is believed, none of them makes
// us ask anybody but the Auth Service, and none is logged.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	log := &logged{}
	v := startAuthorityVerifier(t, a)
	b := setup(t, func(c *api.Config) { c.Verifier = v; c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	now := time.Now()
	es := jwt.SigningMethodES256
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	public, err := x509.MarshalPKIXPublicKey(a.RSA.Public())
	require.NoError(t, err)
	head := func(extra string) string { return `{"alg":"ES256","typ":"JWT","kid":"ec"` + extra + `}` }
	claims := func(extra string) string {
		text, err := json.Marshal(authtest.Claims())
		require.NoError(t, err)
		return string(text[:len(text)-1]) + extra + `}`
	}
	whole := authtest.Sign(t, es, a.EC, "ec", authtest.Claims())
	parts := strings.Split(whole, ".")

	attacks := map[string]string{
		"alg none":                  authtest.Segment(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + ".",
		"alg none with signature":   authtest.Segment(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"alg nOnE":                  authtest.Segment(`{"alg":"nOnE","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"alg es256":                 authtest.Segment(`{"alg":"es256","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"no alg":                    authtest.Segment(`{"kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"HS256 by our public key":   authtest.Sign(t, jwt.SigningMethodHS256, public, "rsa", authtest.Claims()),
		"HS256 by the modulus":      authtest.Sign(t, jwt.SigningMethodHS256, a.RSA.N.Bytes(), "rsa", authtest.Claims()),
		"RS512 with an RS256 key":   authtest.Sign(t, jwt.SigningMethodRS512, a.RSA, "rsa", authtest.Claims()),
		"PS256 with an RS256 key":   authtest.Sign(t, jwt.SigningMethodPS256, a.RSA, "rsa", authtest.Claims()),
		"ES384":                     authtest.Sign(t, jwt.SigningMethodES384, p384, "ec", authtest.Claims()),
		"RS256 under an EC kid":     authtest.Sign(t, jwt.SigningMethodRS256, a.RSA, "ec", authtest.Claims()),
		"wrong key, same kid":       authtest.Sign(t, es, stranger, "ec", authtest.Claims()),
		"wrong RSA key":             authtest.Sign(t, jwt.SigningMethodRS256, authtest.RSAKeys()[1], "rsa", authtest.Claims()),
		"embedded jwk":              authtest.Sign(t, es, stranger, "ec", authtest.Claims(), object{"jwk": authtest.JWK(t, stranger.Public(), "ec", jwkset.AlgES256)}),
		"jku":                       authtest.Sign(t, es, stranger, "evil", authtest.Claims(), object{"jku": a.URL + "/evil"}),
		"x5u":                       authtest.Sign(t, es, stranger, "evil", authtest.Claims(), object{"x5u": a.URL + "/evil"}),
		"crit":                      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(), object{"crit": []string{"exp"}}),
		"crit of nothing":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(), object{"crit": []string{}}),
		"Crit":                      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(), object{"Crit": []string{"x"}}),
		"b64 false":                 authtest.Sign(t, es, a.EC, "ec", authtest.Claims(), object{"b64": false}),
		"no kid":                    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(), object{"kid": nil}),
		"empty kid":                 authtest.Sign(t, es, a.EC, "", authtest.Claims()),
		"kid a number":              a.Crafted(t, `{"alg":"ES256","kid":7}`, claims("")),
		"kid a list":                a.Crafted(t, `{"alg":"ES256","kid":["ec"]}`, claims("")),
		"kid a path":                authtest.Sign(t, es, a.EC, "../../etc/passwd", authtest.Claims()),
		"kid SQL":                   authtest.Sign(t, es, a.EC, "' UNION SELECT 'ec' --", authtest.Claims()),
		"kid in another case":       authtest.Sign(t, es, a.EC, "EC", authtest.Claims()),
		"expired":                   authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": now.Add(-31 * time.Second).Unix()})),
		"no exp":                    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": nil})),
		"exp zero":                  authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": 0})),
		"exp a text":                authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": "never"})),
		"exp in another age":        authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": 1e12})),
		"exp that wraps round":      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": 1e300})),
		"exp 1e400":                 a.Crafted(t, head(""), strings.Replace(claims(""), `"exp":`, `"exp":1e400,"was":`, 1)),
		"not yet":                   authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"nbf": now.Add(40 * time.Second).Unix()})),
		"issued tomorrow":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iat": now.Add(24 * time.Hour).Unix()})),
		"no aud":                    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"aud": nil})),
		"aud of another":            authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"aud": "apis"})),
		"auds of others":            authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"aud": []string{"a", "b"}})),
		"aud a number":              authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"aud": 1})),
		"no iss":                    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iss": nil})),
		"iss that looks alike":      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iss": "auth-service "})),
		"iss in Cyrillic":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iss": "аuth-service"})),
		"a person's":                authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"is_service_account": false})),
		"service account a text":    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"is_service_account": "true"})),
		"no service name":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"service_name": nil})),
		"claims twice":              a.Crafted(t, head(""), claims(`,"service_name":"ui-framework"`)),
		"header twice":              a.Crafted(t, head(`,"kid":"rsa"`), claims("")),
		"claims of NUL":             a.Crafted(t, head(""), claims(`,"tenant_id2":"a\u0000b"`)),
		"claims a list":             a.Crafted(t, head(""), `[]`),
		"claims nothing":            a.Crafted(t, head(""), ``),
		"claims deep":               a.Crafted(t, head(""), strings.Repeat("[", 1000)+strings.Repeat("]", 1000)),
		"claims not UTF-8":          a.Crafted(t, head(""), claims(",\"x\":\"\xff\"")),
		"EXP beside exp":            authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": now.Add(-time.Hour).Unix(), "EXP": now.Add(time.Hour).Unix()})),
		"Exp for exp":               authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": nil, "Exp": now.Add(time.Hour).Unix()})),
		"NBF beside nbf":            authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"nbf": now.Add(time.Hour).Unix(), "NBF": now.Unix()})),
		"Tenant_ID over tenant_id":  a.Crafted(t, head(""), claims(`,"Tenant_ID":"mallory"`)),
		"Tenant_ID for tenant_id":   authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"tenant_id": nil, "Tenant_ID": "acme"})),
		"Scope beside scope":        a.Crafted(t, head(""), claims(`,"Scope":"tasks:define"`)),
		"a scope with a long s":     a.Crafted(t, head(""), claims(`,"\u017fcope":"tasks:define"`)),
		"Service_Name":              a.Crafted(t, head(""), claims(`,"Service_Name":"error-handler"`)),
		"AUD for aud":               authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"aud": nil, "AUD": "api"})),
		"ALG beside alg":            a.Crafted(t, head(`,"ALG":"none"`), claims("")),
		"Kid beside kid":            a.Crafted(t, head(`,"Kid":"rsa"`), claims("")),
		"exp a text of digits":      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": strconv.FormatInt(now.Add(time.Hour).Unix(), 10)})),
		"nbf a text of digits":      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"nbf": strconv.FormatInt(now.Unix(), 10)})),
		"iat a text of digits":      authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iat": strconv.FormatInt(now.Unix(), 10)})),
		"exp with an exponent":      a.Crafted(t, head(""), strings.Replace(claims(""), `"exp":`, `"exp":0.2e10,"was":`, 1)),
		"nbf negative":              authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"nbf": -1})),
		"iat negative":              authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iat": -now.Unix()})),
		"exp NaN":                   authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": "NaN"})),
		"exp a list":                authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": []int64{now.Add(time.Hour).Unix()}})),
		"nbf true":                  authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"nbf": true})),
		"lives too long":            authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": now.Add(24*time.Hour + 2*time.Second).Unix()})),
		"lives too long, no iat":    authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"exp": now.Add(25 * time.Hour).Unix(), "iat": nil})),
		"issued long ago":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"iat": now.Add(-24 * time.Hour).Unix()})),
		"signature cut":             whole[:len(whole)-4],
		"signature of a bit more":   whole + "AAAA",
		"signature another's":       parts[0] + "." + parts[1] + "." + strings.Split(authtest.Sign(t, es, a.EC, "ec", authtest.Claims()), ".")[2],
		"claims another's":          parts[0] + "." + strings.Split(authtest.Sign(t, es, a.EC, "ec", authtest.Claims()), ".")[1] + "." + parts[2],
		"four parts":                whole + ".x",
		"two parts":                 parts[0] + "." + parts[1],
		"no signature":              parts[0] + "." + parts[1] + ".",
		"padding":                   whole + "==",
		"standard base64":           parts[0] + "+/." + parts[1] + "." + parts[2],
		"white space":               parts[0] + " ." + parts[1] + "." + parts[2],
		"dots":                      strings.Repeat(".", 8000),
		"more than 8 KiB":           authtest.Sign(t, es, a.EC, "ec", authtest.Claims(object{"pad": strings.Repeat("x", 8<<10)})),
		"a megabyte of dots":        strings.Repeat(".", 500_000), // net/http takes a megabyte of headers at most
		"not a token":               "hello",
		"signature that is no base": parts[0] + "." + parts[1] + ".!!!!",
	}
	for name, token := range attacks {
		r := b.askWith(t, token, "GET", tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", nil)
		require.Equal(t, 401, r.status, name)
		r.fails(t, 401, "UNAUTHORIZED")
		require.Equal(t, `Bearer realm="tes", error="invalid_token"`, r.header.Get("WWW-Authenticate"), name)
		require.NotContains(t, string(r.body), "kid")
	}
	for name, headers := range map[string][]string{
		"none":   {},
		"basic":  {"Authorization", "Basic dTpw"},
		"empty":  {"Authorization", "Bearer "},
		"scheme": {"Authorization", whole},
	} {
		r := b.askWith(t, "", "GET", tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", nil, headers...)
		r.fails(t, 401, "UNAUTHORIZED")
		require.Equal(t, `Bearer realm="tes"`, r.header.Get("WWW-Authenticate"), name)
	}
	b.askWith(t, whole, "GET", tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", nil).fails(t, 404, "NOT_FOUND")
	b.askWith(t, "", "GET", tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", nil, "Authorization", "bearer "+whole).fails(t, 404, "NOT_FOUND")

	require.Zero(t, a.Strays.Load(), "nobody else was asked")
	eventually(t, func() bool { return strings.Count(log.String(), "\n") >= len(attacks)+4+2 })
	lines := log.String()
	require.Equal(t, len(attacks)+4+2, strings.Count(lines, "\n"), "one line a request")
	for _, part := range append(parts, "etc/passwd", "UNION") {
		require.NotContains(t, lines, part)
	}
}

func TestTwoAuthorizationHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req, err := http.NewRequestWithContext(t.Context(), "GET", b.url+definitionsPath, nil)
	require.NoError(t, err)
	req.Header["Authorization"] = []string{"Bearer " + b.auth.Token(orchestrator), "Bearer x"}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 401, resp.StatusCode)
}

// TestAuthAway: the server starts without the Auth Service, responds with 503, and recovers by itself.
func TestAuthAway(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	a.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	b := setup(t, func(c *api.Config) { c.Verifier = startAuthorityVerifier(t, a) })
	token := authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims())
	r := b.askWith(t, token, "GET", definitionsPath, nil)
	r.fails(t, 503, "UNAVAILABLE")
	require.Equal(t, "1", r.header.Get("Retry-After"))
	b.askWith(t, "rubbish", "GET", definitionsPath, nil).fails(t, 401, "UNAUTHORIZED")

	a.Publish(t, a.Keys(t))
	for deadline := time.Now().Add(10 * time.Second); r.status != 200; {
		r = b.askWith(t, token, "GET", definitionsPath, nil)
		require.True(t, time.Now().Before(deadline), "still %d", r.status)
	}
	a.Answer(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	other := authtest.Sign(t, jwt.SigningMethodRS256, a.RSA, "rsa", authtest.Claims())
	b.askWith(t, other, "GET", definitionsPath, nil).is(t, 200)
	b.askWith(t, authtest.Sign(t, jwt.SigningMethodES256, a.EC, "unknown", authtest.Claims()), "GET", definitionsPath, nil).fails(t, 401, "UNAUTHORIZED")
}

// TestAuthHangs: nobody is kept for an Auth Service that does not answer, not even the
// request that begins the fetch: "unknown kid 401 quickly (≤ 100 ms)". Tokens of known keys do not notice.
func TestAuthHangs(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	v := startAuthorityVerifier(t, a)
	known := func() {
		_, err := v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()))
		require.NoError(t, err)
	}
	unknown := func() time.Duration {
		began := time.Now()
		_, err := v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "unknown", authtest.Claims()))
		require.Error(t, err)
		return time.Since(began)
	}
	known()
	fail, asked, left := make(chan struct{}), make(chan struct{}, 100), make(chan struct{}, 100)
	a.Answer(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-fail:
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusBadGateway)
		left <- struct{}{}
	})
	require.Less(t, unknown(), quickly)
	<-asked
	known()
	b := setup(t, func(c *api.Config) { c.Verifier = v })
	r := b.askWith(t, authtest.Sign(t, jwt.SigningMethodES256, a.EC, "unknown", authtest.Claims()), "GET", definitionsPath, nil)
	r.fails(t, 503, "UNAVAILABLE") // the key may be a new one
	require.Equal(t, "1", r.header.Get("Retry-After"))
	require.Less(t, unknown(), quickly, "a fetch is under way")
	select {
	case fail <- struct{}{}:
	case <-left: // given up already
	}
	// The next fetch hangs too.
	for began := false; !began; {
		require.Less(t, unknown(), quickly)
		known()
		select {
		case <-asked:
			began = true
		default:
		}
	}
	require.Less(t, unknown(), quickly)

	// Auth is back, with another key beside the old ones.
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.Publish(t, append(a.Keys(t), authtest.JWK(t, fresh.Public(), "fresh", jwkset.AlgES256)))
	close(fail)
	eventually(t, func() bool {
		_, err := v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, fresh, "fresh", authtest.Claims()))
		return err == nil
	})
	known()
}

// quickly is 100 ms, and what a busy machine may add; a fetch ends after 5 s.
const quickly = time.Second

// startAuthorityVerifier verifies against the keys of a fake Auth Service.
func startAuthorityVerifier(t *testing.T, a *authtest.Authority) *auth.Verifier {
	t.Helper()
	v, err := auth.NewVerifier(auth.Config{JWKS: a.URL + "/jwks.json", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}
