package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

// authority is an Auth Service that does as it is told, with a key of each kind.
type authority struct {
	url     string
	ec      *ecdsa.PrivateKey
	rsa     *rsa.PrivateKey
	ed      ed25519.PrivateKey
	fetches atomic.Int64
	strays  atomic.Int64 // requests for anything but the key set

	mu     sync.Mutex
	answer http.HandlerFunc // guarded by mu
}

// RSA keys take long to make, so all tests share these two.
var rsaKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{rsa: rsaKeys()[0]}
	var err error
	a.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, a.ed, err = ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	a.publish(t, a.keys(t))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jwks.json" {
			a.strays.Add(1)
			a.write(t, w, a.keys(t))
			return
		}
		a.fetches.Add(1)
		a.mu.Lock()
		answer := a.answer
		a.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func (a *authority) say(answer http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

func (a *authority) publish(t *testing.T, keys []object) {
	a.say(func(w http.ResponseWriter, _ *http.Request) { a.write(t, w, keys) })
}

func (a *authority) write(t *testing.T, w io.Writer, keys []object) {
	if err := json.NewEncoder(w).Encode(object{"keys": keys}); err != nil {
		t.Error(err)
	}
}

func jwk(t *testing.T, key any, kid string, alg jwkset.ALG) object {
	t.Helper()
	k, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{
		Marshal: jwkset.JWKMarshalOptions{Private: true}, Metadata: jwkset.JWKMetadataOptions{KID: kid, ALG: alg, USE: jwkset.UseSig},
	})
	require.NoError(t, err)
	text, err := json.Marshal(k.Marshal())
	require.NoError(t, err)
	var out object
	require.NoError(t, json.Unmarshal(text, &out))
	return out
}

func (a *authority) keys(t *testing.T) []object {
	return []object{
		jwk(t, a.ec.Public(), "ec", jwkset.AlgES256), jwk(t, a.rsa.Public(), "rsa", ""), jwk(t, a.ed.Public(), "ed", jwkset.AlgEdDSA),
	}
}

func (a *authority) verifier(t *testing.T) *api.Verifier {
	t.Helper()
	v, err := api.NewVerifier(api.VerifierConfig{JWKS: a.url + "/jwks.json", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}

func good(change ...object) object {
	now := time.Now()
	return merge(object{
		"iss": "auth-service", "aud": "api", "sub": "s", "exp": now.Add(time.Hour).Unix(), "nbf": now.Unix(), "iat": now.Unix(), "jti": rand.Text(),
		"scope": "tasks:read tasks:create", "is_service_account": true, "service_name": orchestrator, "tenant_id": "acme",
	}, change...)
}

// signed is a token with these claims, under the header's alg and kid.
func signed(t *testing.T, method jwt.SigningMethod, key any, kid string, claims object, header ...object) string {
	t.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	token.Header["kid"] = kid
	token.Header = merge(token.Header, header...)
	text, err := token.SignedString(key)
	require.NoError(t, err)
	return text
}

// crafted signs whatever is given, word for word, with a good EC key.
func (a *authority) crafted(t *testing.T, header, claims string) string {
	t.Helper()
	text := segment(header) + "." + segment(claims)
	sig, err := jwt.SigningMethodES256.Sign(text, a.ec)
	require.NoError(t, err)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func segment(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestGoodTokens(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	v := a.verifier(t)
	now := time.Now()
	for name, token := range map[string]string{
		"ES256":                   signed(t, jwt.SigningMethodES256, a.ec, "ec", good()),
		"RS256":                   signed(t, jwt.SigningMethodRS256, a.rsa, "rsa", good()),
		"EdDSA":                   signed(t, jwt.SigningMethodEdDSA, a.ed, "ed", good()),
		"audiences":               signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"aud": []string{"other", "api"}})),
		"expired within leeway":   signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"exp": now.Add(-20 * time.Second).Unix()})),
		"begins within leeway":    signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"nbf": now.Add(20 * time.Second).Unix(), "iat": now.Add(20 * time.Second).Unix()})),
		"without nbf and iat":     signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"nbf": nil, "iat": nil})),
		"without service account": signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"is_service_account": nil})),
		"a day, no more":          signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"exp": now.Add(24 * time.Hour).Unix()})),
		"a day, without iat":      signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"exp": now.Add(24 * time.Hour).Unix(), "iat": nil})),
		"times with a fraction":   signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"exp": float64(now.Add(time.Hour).Unix()) + 0.5, "iat": float64(now.Unix()) + 0.25})),
		"claims it ignores":       signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"EXPIRES": 1, "nested": object{"exp": 1, "EXP": 2}})),
		"headers it ignores":      signed(t, jwt.SigningMethodES256, a.ec, "ec", good(), object{"jku": a.url + "/evil", "x5u": a.url + "/evil"}),
	} {
		for range 2 { // the second time from memory
			caller, err := v.Verify(t.Context(), token)
			require.NoError(t, err, name)
			require.Equal(t, orchestrator, caller.Name)
			require.Equal(t, "acme", caller.Tenant)
			require.True(t, caller.Holds("tasks:create"))
			require.False(t, caller.Holds("tasks"))
		}
	}
	require.Zero(t, a.strays.Load())
}

// TestBadTokens is the attack table: none of them is believed, none of them makes
// us ask anybody but the Auth Service, and none is logged.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	log := &logged{}
	v := a.verifier(t)
	b := setup(t, func(c *api.Config) { c.Verifier = v; c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	now := time.Now()
	es := jwt.SigningMethodES256
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	public, err := x509.MarshalPKIXPublicKey(a.rsa.Public())
	require.NoError(t, err)
	head := func(extra string) string { return `{"alg":"ES256","typ":"JWT","kid":"ec"` + extra + `}` }
	claims := func(extra string) string {
		text, err := json.Marshal(good())
		require.NoError(t, err)
		return string(text[:len(text)-1]) + extra + `}`
	}
	whole := signed(t, es, a.ec, "ec", good())
	parts := strings.Split(whole, ".")

	attacks := map[string]string{
		"alg none":                  segment(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + ".",
		"alg none with signature":   segment(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"alg nOnE":                  segment(`{"alg":"nOnE","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"alg es256":                 segment(`{"alg":"es256","kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"no alg":                    segment(`{"kid":"ec"}`) + "." + parts[1] + "." + parts[2],
		"HS256 by our public key":   signed(t, jwt.SigningMethodHS256, public, "rsa", good()),
		"HS256 by the modulus":      signed(t, jwt.SigningMethodHS256, a.rsa.N.Bytes(), "rsa", good()),
		"RS512 with an RS256 key":   signed(t, jwt.SigningMethodRS512, a.rsa, "rsa", good()),
		"PS256 with an RS256 key":   signed(t, jwt.SigningMethodPS256, a.rsa, "rsa", good()),
		"ES384":                     signed(t, jwt.SigningMethodES384, p384, "ec", good()),
		"RS256 under an EC kid":     signed(t, jwt.SigningMethodRS256, a.rsa, "ec", good()),
		"wrong key, same kid":       signed(t, es, stranger, "ec", good()),
		"wrong RSA key":             signed(t, jwt.SigningMethodRS256, rsaKeys()[1], "rsa", good()),
		"embedded jwk":              signed(t, es, stranger, "ec", good(), object{"jwk": jwk(t, stranger.Public(), "ec", jwkset.AlgES256)}),
		"jku":                       signed(t, es, stranger, "evil", good(), object{"jku": a.url + "/evil"}),
		"x5u":                       signed(t, es, stranger, "evil", good(), object{"x5u": a.url + "/evil"}),
		"crit":                      signed(t, es, a.ec, "ec", good(), object{"crit": []string{"exp"}}),
		"crit of nothing":           signed(t, es, a.ec, "ec", good(), object{"crit": []string{}}),
		"Crit":                      signed(t, es, a.ec, "ec", good(), object{"Crit": []string{"x"}}),
		"b64 false":                 signed(t, es, a.ec, "ec", good(), object{"b64": false}),
		"no kid":                    signed(t, es, a.ec, "ec", good(), object{"kid": nil}),
		"empty kid":                 signed(t, es, a.ec, "", good()),
		"kid a number":              a.crafted(t, `{"alg":"ES256","kid":7}`, claims("")),
		"kid a list":                a.crafted(t, `{"alg":"ES256","kid":["ec"]}`, claims("")),
		"kid a path":                signed(t, es, a.ec, "../../etc/passwd", good()),
		"kid SQL":                   signed(t, es, a.ec, "' UNION SELECT 'ec' --", good()),
		"kid in another case":       signed(t, es, a.ec, "EC", good()),
		"expired":                   signed(t, es, a.ec, "ec", good(object{"exp": now.Add(-31 * time.Second).Unix()})),
		"no exp":                    signed(t, es, a.ec, "ec", good(object{"exp": nil})),
		"exp zero":                  signed(t, es, a.ec, "ec", good(object{"exp": 0})),
		"exp a text":                signed(t, es, a.ec, "ec", good(object{"exp": "never"})),
		"exp in another age":        signed(t, es, a.ec, "ec", good(object{"exp": 1e12})),
		"exp that wraps round":      signed(t, es, a.ec, "ec", good(object{"exp": 1e300})),
		"exp 1e400":                 a.crafted(t, head(""), strings.Replace(claims(""), `"exp":`, `"exp":1e400,"was":`, 1)),
		"not yet":                   signed(t, es, a.ec, "ec", good(object{"nbf": now.Add(40 * time.Second).Unix()})),
		"issued tomorrow":           signed(t, es, a.ec, "ec", good(object{"iat": now.Add(24 * time.Hour).Unix()})),
		"no aud":                    signed(t, es, a.ec, "ec", good(object{"aud": nil})),
		"aud of another":            signed(t, es, a.ec, "ec", good(object{"aud": "apis"})),
		"auds of others":            signed(t, es, a.ec, "ec", good(object{"aud": []string{"a", "b"}})),
		"aud a number":              signed(t, es, a.ec, "ec", good(object{"aud": 1})),
		"no iss":                    signed(t, es, a.ec, "ec", good(object{"iss": nil})),
		"iss that looks alike":      signed(t, es, a.ec, "ec", good(object{"iss": "auth-service "})),
		"iss in Cyrillic":           signed(t, es, a.ec, "ec", good(object{"iss": "аuth-service"})),
		"a person's":                signed(t, es, a.ec, "ec", good(object{"is_service_account": false})),
		"service account a text":    signed(t, es, a.ec, "ec", good(object{"is_service_account": "true"})),
		"no service name":           signed(t, es, a.ec, "ec", good(object{"service_name": nil})),
		"claims twice":              a.crafted(t, head(""), claims(`,"service_name":"ui-framework"`)),
		"header twice":              a.crafted(t, head(`,"kid":"rsa"`), claims("")),
		"claims of NUL":             a.crafted(t, head(""), claims(`,"tenant_id2":"a\u0000b"`)),
		"claims a list":             a.crafted(t, head(""), `[]`),
		"claims nothing":            a.crafted(t, head(""), ``),
		"claims deep":               a.crafted(t, head(""), strings.Repeat("[", 1000)+strings.Repeat("]", 1000)),
		"claims not UTF-8":          a.crafted(t, head(""), claims(",\"x\":\"\xff\"")),
		"EXP beside exp":            signed(t, es, a.ec, "ec", good(object{"exp": now.Add(-time.Hour).Unix(), "EXP": now.Add(time.Hour).Unix()})),
		"Exp for exp":               signed(t, es, a.ec, "ec", good(object{"exp": nil, "Exp": now.Add(time.Hour).Unix()})),
		"NBF beside nbf":            signed(t, es, a.ec, "ec", good(object{"nbf": now.Add(time.Hour).Unix(), "NBF": now.Unix()})),
		"Tenant_ID over tenant_id":  a.crafted(t, head(""), claims(`,"Tenant_ID":"mallory"`)),
		"Tenant_ID for tenant_id":   signed(t, es, a.ec, "ec", good(object{"tenant_id": nil, "Tenant_ID": "acme"})),
		"Scope beside scope":        a.crafted(t, head(""), claims(`,"Scope":"tasks:define"`)),
		"a scope with a long s":     a.crafted(t, head(""), claims(`,"\u017fcope":"tasks:define"`)),
		"Service_Name":              a.crafted(t, head(""), claims(`,"Service_Name":"error-handler"`)),
		"AUD for aud":               signed(t, es, a.ec, "ec", good(object{"aud": nil, "AUD": "api"})),
		"ALG beside alg":            a.crafted(t, head(`,"ALG":"none"`), claims("")),
		"Kid beside kid":            a.crafted(t, head(`,"Kid":"rsa"`), claims("")),
		"exp a text of digits":      signed(t, es, a.ec, "ec", good(object{"exp": strconv.FormatInt(now.Add(time.Hour).Unix(), 10)})),
		"nbf a text of digits":      signed(t, es, a.ec, "ec", good(object{"nbf": strconv.FormatInt(now.Unix(), 10)})),
		"iat a text of digits":      signed(t, es, a.ec, "ec", good(object{"iat": strconv.FormatInt(now.Unix(), 10)})),
		"exp with an exponent":      a.crafted(t, head(""), strings.Replace(claims(""), `"exp":`, `"exp":0.2e10,"was":`, 1)),
		"nbf negative":              signed(t, es, a.ec, "ec", good(object{"nbf": -1})),
		"iat negative":              signed(t, es, a.ec, "ec", good(object{"iat": -now.Unix()})),
		"exp NaN":                   signed(t, es, a.ec, "ec", good(object{"exp": "NaN"})),
		"exp a list":                signed(t, es, a.ec, "ec", good(object{"exp": []int64{now.Add(time.Hour).Unix()}})),
		"nbf true":                  signed(t, es, a.ec, "ec", good(object{"nbf": true})),
		"lives too long":            signed(t, es, a.ec, "ec", good(object{"exp": now.Add(24*time.Hour + 2*time.Second).Unix()})),
		"lives too long, no iat":    signed(t, es, a.ec, "ec", good(object{"exp": now.Add(25 * time.Hour).Unix(), "iat": nil})),
		"issued long ago":           signed(t, es, a.ec, "ec", good(object{"iat": now.Add(-24 * time.Hour).Unix()})),
		"signature cut":             whole[:len(whole)-4],
		"signature of a bit more":   whole + "AAAA",
		"signature another's":       parts[0] + "." + parts[1] + "." + strings.Split(signed(t, es, a.ec, "ec", good()), ".")[2],
		"claims another's":          parts[0] + "." + strings.Split(signed(t, es, a.ec, "ec", good()), ".")[1] + "." + parts[2],
		"four parts":                whole + ".x",
		"two parts":                 parts[0] + "." + parts[1],
		"no signature":              parts[0] + "." + parts[1] + ".",
		"padding":                   whole + "==",
		"standard base64":           parts[0] + "+/." + parts[1] + "." + parts[2],
		"white space":               parts[0] + " ." + parts[1] + "." + parts[2],
		"dots":                      strings.Repeat(".", 8000),
		"more than 8 KiB":           signed(t, es, a.ec, "ec", good(object{"pad": strings.Repeat("x", 8<<10)})),
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

	require.Zero(t, a.strays.Load(), "nobody else was asked")
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

// TestRotation: a flood of made-up key ids does not make us flood the Auth Service,
// and does not keep a real rotation from being noticed.
func TestRotation(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	v := a.verifier(t)
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var bogus atomic.Int64
	var flood sync.WaitGroup
	for i := range 8 {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				header := segment(fmt.Sprintf(`{"alg":"ES256","kid":"bogus-%d-%d"}`, i, n))
				if _, err := v.Verify(ctx, header+"."+segment(`{}`)+"."+segment("x")); err == nil {
					t.Error("a bogus token was believed")
				}
				bogus.Add(1)
			}
		})
	}
	_, err := v.Verify(ctx, signed(t, jwt.SigningMethodES256, a.ec, "ec", good()))
	for err != nil { // until the first set is there
		_, err = v.Verify(ctx, signed(t, jwt.SigningMethodES256, a.ec, "ec", good()))
	}
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.publish(t, append(a.keys(t), jwk(t, fresh.Public(), "fresh", jwkset.AlgES256)))
	rotated := time.Now()
	for {
		if _, err := v.Verify(ctx, signed(t, jwt.SigningMethodES256, fresh, "fresh", good())); err == nil {
			break
		}
		require.Less(t, time.Since(rotated), 2*time.Second, "the rotation was not noticed")
	}
	cancel()
	flood.Wait()
	t.Logf("%d bogus tokens, %d fetches, rotation noticed after %s", bogus.Load(), a.fetches.Load(), time.Since(rotated))
	require.LessOrEqual(t, a.fetches.Load(), 1+3+int64(time.Since(start).Seconds()+1))
}

// TestBadKeySets: a set that is not as it must be leaves the last good one.
func TestBadKeySets(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	endless := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"keys":[`)
		for range 100 << 10 {
			if _, err := io.WriteString(w, strings.Repeat(`{"kty":"x"},`, 100)); err != nil {
				return
			}
		}
	}
	a := newAuthority(t)
	set := func(keys ...object) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { a.write(t, w, keys) }
	}
	for name, answer := range map[string]http.HandlerFunc{
		"empty":         set(),
		"of no use":     set(object{"kty": "oct2", "kid": "ec"}),
		"private":       set(append(a.keys(t), jwk(t, a.ec, "other", jwkset.AlgES256))...),
		"symmetric":     set(append(a.keys(t), object{"kty": "oct", "kid": "h", "k": "c2VjcmV0", "alg": "HS256"})...),
		"weak RSA":      set(append(a.keys(t), jwk(t, weak.Public(), "weak", ""))...),
		"one kid twice": set(append(a.keys(t), jwk(t, a.rsa.Public(), "ec", ""))...),
		"alg and type":  set(append(a.keys(t), merge(jwk(t, a.rsa.Public(), "odd", ""), object{"alg": "ES256"}))...),
		"off the curve": set(append(a.keys(t), merge(jwk(t, a.ec.Public(), "off", jwkset.AlgES256), object{"y": jwk(t, a.ec.Public(), "x", "")["x"]}))...),
		"too many":      set(make([]object, 65)...),
		"endless":       endless,
		"no JSON":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"members twice": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"keys":[],"keys":[]}`) },
		"redirect":      func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"500":           func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"cut":           func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			v := a.verifier(t)
			_, err := v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "ec", good()))
			require.NoError(t, err)
			before := a.fetches.Load()
			a.say(answer)
			_, err = v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "unknown", good()))
			require.Error(t, err)
			eventually(t, func() bool { return a.fetches.Load() > before })
			_, err = v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "ec", good()))
			require.NoError(t, err, "the last good set is kept")
			require.Zero(t, a.strays.Load())
		})
	}
}

// TestAuthAway: the door opens without Auth, says so, and recovers by itself.
func TestAuthAway(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.say(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	b := setup(t, func(c *api.Config) { c.Verifier = a.verifier(t) })
	token := signed(t, jwt.SigningMethodES256, a.ec, "ec", good())
	r := b.askWith(t, token, "GET", definitionsPath, nil)
	r.fails(t, 503, "UNAVAILABLE")
	require.Equal(t, "1", r.header.Get("Retry-After"))
	b.askWith(t, "rubbish", "GET", definitionsPath, nil).fails(t, 401, "UNAUTHORIZED")

	a.publish(t, a.keys(t))
	for deadline := time.Now().Add(10 * time.Second); r.status != 200; {
		r = b.askWith(t, token, "GET", definitionsPath, nil)
		require.True(t, time.Now().Before(deadline), "still %d", r.status)
	}
	a.say(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	other := signed(t, jwt.SigningMethodRS256, a.rsa, "rsa", good())
	b.askWith(t, other, "GET", definitionsPath, nil).is(t, 200)
	b.askWith(t, signed(t, jwt.SigningMethodES256, a.ec, "unknown", good()), "GET", definitionsPath, nil).fails(t, 401, "UNAUTHORIZED")
}

// TestAuthHangs: nobody is kept for an Auth Service that does not answer, not even the
// request that begins the fetch: "unknown kid 401 quickly (≤ 100 ms)". Tokens of known keys do not notice.
func TestAuthHangs(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	v := a.verifier(t)
	known := func() {
		_, err := v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "ec", good()))
		require.NoError(t, err)
	}
	unknown := func() time.Duration {
		began := time.Now()
		_, err := v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "unknown", good()))
		require.Error(t, err)
		return time.Since(began)
	}
	known()
	fail, asked, left := make(chan struct{}), make(chan struct{}, 100), make(chan struct{}, 100)
	a.say(func(w http.ResponseWriter, r *http.Request) {
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
	r := b.askWith(t, signed(t, jwt.SigningMethodES256, a.ec, "unknown", good()), "GET", definitionsPath, nil)
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
	a.publish(t, append(a.keys(t), jwk(t, fresh.Public(), "fresh", jwkset.AlgES256)))
	close(fail)
	eventually(t, func() bool {
		_, err := v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, fresh, "fresh", good()))
		return err == nil
	})
	known()
}

// quickly is 100 ms, and what a busy machine may add; a fetch ends after 5 s.
const quickly = time.Second

// TestTokensAreForgotten: what is remembered of a token ends with it.
func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	v := a.verifier(t)
	exp := time.Now().Add(-leeway + 1500*time.Millisecond).Unix() // leeway is all that it has left
	token := signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"exp": exp, "nbf": exp - 60, "iat": exp - 60}))
	_, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	for deadline := time.Now().Add(5 * time.Second); err == nil; _, err = v.Verify(t.Context(), token) {
		require.True(t, time.Now().Before(deadline), "it is still believed")
	}
	require.ErrorContains(t, err, "expired")
}

const leeway = 30 * time.Second

// TestTokenMaxLife: how long a token may be good for is a setting.
func TestTokenMaxLife(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	v, err := api.NewVerifier(api.VerifierConfig{JWKS: a.url + "/jwks.json", MaxLife: 48 * time.Hour, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	now := time.Now()
	for life, fine := range map[time.Duration]bool{48 * time.Hour: true, 48*time.Hour + 2*time.Second: false} {
		_, err := v.Verify(t.Context(), signed(t, jwt.SigningMethodES256, a.ec, "ec", good(object{"iat": now.Unix(), "exp": now.Add(life).Unix()})))
		require.Equal(t, fine, err == nil, "%s: %v", life, err)
	}
}
