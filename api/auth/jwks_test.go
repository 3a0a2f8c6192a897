package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// slowAuth is an Auth Service on a clock that moves only when everybody waits.
type slowAuth struct {
	mu    sync.Mutex
	keys  map[string]*ecdsa.PrivateKey // guarded by mu
	takes time.Duration                // guarded by mu; until it answers
	asked int                          // guarded by mu
}

func (a *slowAuth) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.asked++
	takes := a.takes
	var set jwkset.JWKSMarshal
	for kid, key := range a.keys { // as they are when it is asked
		k, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: kid, ALG: jwkset.AlgES256, USE: jwkset.UseSig}})
		if err != nil {
			panic(err)
		}
		set.Keys = append(set.Keys, k.Marshal())
	}
	a.mu.Unlock()

	select {
	case <-time.After(takes):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	body, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// rotate publishes another key, and says how long it takes from now on to be told of it.
func (a *slowAuth) rotate(t *testing.T, kid string, takes time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keys == nil {
		a.keys = map[string]*ecdsa.PrivateKey{}
	}
	a.keys[kid], a.takes = key, takes
}

// token is a good one, signed by the key of that id.
func (a *slowAuth) token(t *testing.T, kid string) string {
	t.Helper()
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": "auth-service", "aud": "api", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "service_name": "workflow-orchestrator", "jti": rand.Text(),
	})
	token.Header["kid"] = kid
	a.mu.Lock()
	defer a.mu.Unlock()
	signed, err := token.SignedString(a.keys[kid])
	require.NoError(t, err)
	return signed
}

// verified is how long a token of that key took to be judged, and what came of it.
func (a *slowAuth) verified(t *testing.T, v *Verifier, kid string) (time.Duration, error) {
	t.Helper()
	token, begun := a.token(t, kid), time.Now()
	_, err := v.Verify(t.Context(), token)
	return time.Since(begun), err
}

func rotating(t *testing.T, run func(t *testing.T, a *slowAuth, v *Verifier)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &slowAuth{}
		a.rotate(t, "old", 0)
		v, err := NewVerifier(Config{JWKS: "http://auth/jwks.json", Transport: a, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		defer v.Close()
		_, err = a.verified(t, v, "old")
		require.NoError(t, err)
		run(t, a, v)
	})
}

// TestRotationCostsNoToken: the first token of a new key waits for the fetch that brings
// the key, and is not refused because that took a while.
func TestRotationCostsNoToken(t *testing.T) {
	t.Parallel()
	rotating(t, func(t *testing.T, a *slowAuth, v *Verifier) {
		a.rotate(t, "new", 80*time.Millisecond)
		took, err := a.verified(t, v, "new")
		require.NoError(t, err)
		require.Equal(t, 80*time.Millisecond, took)
	})
}

// TestRotationDuringAFetch: a fetch that was under way before the token came may have
// missed the key, so its answer is not the last word.
func TestRotationDuringAFetch(t *testing.T) {
	t.Parallel()
	rotating(t, func(t *testing.T, a *slowAuth, v *Verifier) {
		a.rotate(t, "other", 40*time.Millisecond)
		v.keys.fetchOnce()
		<-time.After(10 * time.Millisecond) // it has been asked
		a.rotate(t, "new", 40*time.Millisecond)
		took, err := a.verified(t, v, "new")
		require.NoError(t, err)
		require.Equal(t, 70*time.Millisecond, took)
	})
}

// TestAuthHangsAtARotation: nothing is known of a token whose key is not known while the
// Auth Service hangs, so it is not called a bad one; nobody but who brings it waits, and
// only the first of them.
func TestAuthHangsAtARotation(t *testing.T) {
	t.Parallel()
	rotating(t, func(t *testing.T, a *slowAuth, v *Verifier) {
		synctest.Wait()
		before := a.asked
		a.rotate(t, "new", time.Hour)
		took, err := a.verified(t, v, "new")
		require.ErrorIs(t, err, errKeysLate)
		require.Equal(t, unknownWait, took)
		for range 100 {
			took, err = a.verified(t, v, "new")
			require.ErrorIs(t, err, errKeysLate)
			require.Zero(t, took)
			took, err = a.verified(t, v, "old")
			require.NoError(t, err)
			require.Zero(t, took)
		}
		require.Equal(t, before+1, a.asked, "one fetch for all of them")
		<-time.After(fetchTime) // it is given up

		// A key that Auth does not have is refused for good.
		a.rotate(t, "revoked", 10*time.Millisecond)
		revoked := a.token(t, "revoked")
		a.mu.Lock()
		delete(a.keys, "revoked")
		a.mu.Unlock()
		_, err = v.Verify(t.Context(), revoked)
		var bad InvalidToken
		require.ErrorAs(t, err, &bad)
		_, err = a.verified(t, v, "new")
		require.NoError(t, err)
	})
}
