// Package authtest is a fake Auth Service for tests of token verification.
package authtest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// Object is a JSON object.
type Object = map[string]any

// Authority is a fake Auth Service with one signing key of each kind. Its key ids are ec, rsa and
// ed. Tests decide how it answers.
type Authority struct {
	URL     string // of the service; the key set is at /jwks.json
	EC      *ecdsa.PrivateKey
	RSA     *rsa.PrivateKey
	Ed      ed25519.PrivateKey
	Fetches atomic.Int64 // requests for the key set
	Strays  atomic.Int64 // requests for any other path

	mu     sync.Mutex
	answer http.HandlerFunc // guarded by mu
}

// RSAKeys are two keys that all tests share: RSA keys take long to make.
var RSAKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
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

// New starts a fake Auth Service that publishes its three keys. It stops with the test.
func New(t *testing.T) *Authority {
	t.Helper()
	a := &Authority{RSA: RSAKeys()[0]}
	var err error
	a.EC, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, a.Ed, err = ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	a.Publish(t, a.Keys(t))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jwks.json" {
			a.Strays.Add(1)
			a.Write(t, w, a.Keys(t))
			return
		}

		a.Fetches.Add(1)
		a.mu.Lock()
		answer := a.answer
		a.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	a.URL = server.URL
	return a
}

// Answer replaces the handler of the key set.
func (a *Authority) Answer(answer http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// Publish lets the key set consist of these keys.
func (a *Authority) Publish(t *testing.T, keys []Object) {
	a.Answer(func(w http.ResponseWriter, _ *http.Request) { a.Write(t, w, keys) })
}

// Write writes a key set of these keys.
func (a *Authority) Write(t *testing.T, w io.Writer, keys []Object) {
	if err := json.NewEncoder(w).Encode(Object{"keys": keys}); err != nil {
		t.Error(err)
	}
}

// JWK is a key as a key set shows it, private parts included where key has any.
func JWK(t *testing.T, key any, kid string, alg jwkset.ALG) Object {
	t.Helper()
	k, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{
		Marshal: jwkset.JWKMarshalOptions{Private: true}, Metadata: jwkset.JWKMetadataOptions{KID: kid, ALG: alg, USE: jwkset.UseSig},
	})
	require.NoError(t, err)
	text, err := json.Marshal(k.Marshal())
	require.NoError(t, err)
	var out Object
	require.NoError(t, json.Unmarshal(text, &out))
	return out
}

// Keys are the public halves of the three keys.
func (a *Authority) Keys(t *testing.T) []Object {
	return []Object{
		JWK(t, a.EC.Public(), "ec", jwkset.AlgES256), JWK(t, a.RSA.Public(), "rsa", ""), JWK(t, a.Ed.Public(), "ed", jwkset.AlgEdDSA),
	}
}

// Claims are those of a valid token of workflow-orchestrator in tenant acme, with members replaced;
// nil takes a member away.
func Claims(change ...Object) Object {
	now := time.Now()
	return Merge(Object{
		"iss": "auth-service", "aud": "api", "sub": "s", "exp": now.Add(time.Hour).Unix(), "nbf": now.Unix(), "iat": now.Unix(), "jti": rand.Text(),
		"scope": "tasks:read tasks:create", "is_service_account": true, "service_name": "workflow-orchestrator", "tenant_id": "acme",
	}, change...)
}

// Sign makes a token of these claims, with more members of the header.
func Sign(t *testing.T, method jwt.SigningMethod, key any, kid string, claims Object, header ...Object) string {
	t.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	token.Header["kid"] = kid
	token.Header = Merge(token.Header, header...)
	text, err := token.SignedString(key)
	require.NoError(t, err)
	return text
}

// Crafted signs header and claims as they are, byte for byte, with the EC key.
func (a *Authority) Crafted(t *testing.T, header, claims string) string {
	t.Helper()
	text := Segment(header) + "." + Segment(claims)
	sig, err := jwt.SigningMethodES256.Sign(text, a.EC)
	require.NoError(t, err)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// Segment encodes one part of a token.
func Segment(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// Merge puts members over others; nil takes one away.
func Merge(o Object, change ...Object) Object {
	for _, c := range change {
		for name, v := range c {
			if v == nil {
				delete(o, name)
			} else {
				o[name] = v
			}
		}
	}

	return o
}
