package auth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/auth/authtest"
)

// object is JSON.
type object = map[string]any

func verifier(t *testing.T, a *authtest.Authority) *auth.Verifier {
	t.Helper()
	v, err := auth.NewVerifier(auth.Config{JWKS: a.URL + "/jwks.json", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}

func eventually(t *testing.T, check func() bool) {
	t.Helper()
	require.Eventually(t, check, 10*time.Second, 10*time.Millisecond)
}

const leeway = 30 * time.Second

func TestGoodTokens(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	v := verifier(t, a)
	now := time.Now()
	for name, token := range map[string]string{
		"ES256":                   authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()),
		"RS256":                   authtest.Sign(t, jwt.SigningMethodRS256, a.RSA, "rsa", authtest.Claims()),
		"EdDSA":                   authtest.Sign(t, jwt.SigningMethodEdDSA, a.Ed, "ed", authtest.Claims()),
		"audiences":               authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"aud": []string{"other", "api"}})),
		"expired within leeway":   authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"exp": now.Add(-20 * time.Second).Unix()})),
		"begins within leeway":    authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"nbf": now.Add(20 * time.Second).Unix(), "iat": now.Add(20 * time.Second).Unix()})),
		"without nbf and iat":     authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"nbf": nil, "iat": nil})),
		"without service account": authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"is_service_account": nil})),
		"a day, no more":          authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"exp": now.Add(24 * time.Hour).Unix()})),
		"a day, without iat":      authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"exp": now.Add(24 * time.Hour).Unix(), "iat": nil})),
		"times with a fraction":   authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"exp": float64(now.Add(time.Hour).Unix()) + 0.5, "iat": float64(now.Unix()) + 0.25})),
		"claims it ignores":       authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"EXPIRES": 1, "nested": object{"exp": 1, "EXP": 2}})),
		"headers it ignores":      authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(), object{"jku": a.URL + "/evil", "x5u": a.URL + "/evil"}),
	} {
		for range 2 { // the second time from memory
			caller, err := v.Verify(t.Context(), token)
			require.NoError(t, err, name)
			require.Equal(t, "workflow-orchestrator", caller.Name)
			require.Equal(t, "acme", caller.Tenant)
			require.True(t, caller.Holds("tasks:create"))
			require.False(t, caller.Holds("tasks"))
		}
	}
	require.Zero(t, a.Strays.Load())
}

// TestRotation: a flood of made-up key ids does not make us flood the Auth Service,
// and does not keep a real rotation from being noticed.
func TestRotation(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	v := verifier(t, a)
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var bogus atomic.Int64
	var flood sync.WaitGroup
	for i := range 8 {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				header := authtest.Segment(fmt.Sprintf(`{"alg":"ES256","kid":"bogus-%d-%d"}`, i, n))
				if _, err := v.Verify(ctx, header+"."+authtest.Segment(`{}`)+"."+authtest.Segment("x")); err == nil {
					t.Error("a bogus token was believed")
				}
				bogus.Add(1)
			}
		})
	}
	_, err := v.Verify(ctx, authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()))
	for err != nil { // until the first set is there
		_, err = v.Verify(ctx, authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()))
	}
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.Publish(t, append(a.Keys(t), authtest.JWK(t, fresh.Public(), "fresh", jwkset.AlgES256)))
	rotated := time.Now()
	for {
		if _, err := v.Verify(ctx, authtest.Sign(t, jwt.SigningMethodES256, fresh, "fresh", authtest.Claims())); err == nil {
			break
		}
		require.Less(t, time.Since(rotated), 2*time.Second, "the rotation was not noticed")
	}
	cancel()
	flood.Wait()
	t.Logf("%d bogus tokens, %d fetches, rotation noticed after %s", bogus.Load(), a.Fetches.Load(), time.Since(rotated))
	require.LessOrEqual(t, a.Fetches.Load(), 1+3+int64(time.Since(start).Seconds()+1))
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
	a := authtest.New(t)
	set := func(keys ...object) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { a.Write(t, w, keys) }
	}
	for name, answer := range map[string]http.HandlerFunc{
		"empty":         set(),
		"of no use":     set(object{"kty": "oct2", "kid": "ec"}),
		"private":       set(append(a.Keys(t), authtest.JWK(t, a.EC, "other", jwkset.AlgES256))...),
		"symmetric":     set(append(a.Keys(t), object{"kty": "oct", "kid": "h", "k": "c2VjcmV0", "alg": "HS256"})...),
		"weak RSA":      set(append(a.Keys(t), authtest.JWK(t, weak.Public(), "weak", ""))...),
		"one kid twice": set(append(a.Keys(t), authtest.JWK(t, a.RSA.Public(), "ec", ""))...),
		"alg and type":  set(append(a.Keys(t), authtest.Merge(authtest.JWK(t, a.RSA.Public(), "odd", ""), object{"alg": "ES256"}))...),
		"off the curve": set(append(a.Keys(t), authtest.Merge(authtest.JWK(t, a.EC.Public(), "off", jwkset.AlgES256), object{"y": authtest.JWK(t, a.EC.Public(), "x", "")["x"]}))...),
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
			a := authtest.New(t)
			v := verifier(t, a)
			_, err := v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()))
			require.NoError(t, err)
			before := a.Fetches.Load()
			a.Answer(answer)
			_, err = v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "unknown", authtest.Claims()))
			require.Error(t, err)
			eventually(t, func() bool { return a.Fetches.Load() > before })
			_, err = v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims()))
			require.NoError(t, err, "the last good set is kept")
			require.Zero(t, a.Strays.Load())
		})
	}
}

// TestTokensAreForgotten: what is remembered of a token ends with it.
func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	v := verifier(t, a)
	exp := time.Now().Add(-leeway + 1500*time.Millisecond).Unix() // leeway is all that it has left
	token := authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"exp": exp, "nbf": exp - 60, "iat": exp - 60}))
	_, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	for deadline := time.Now().Add(5 * time.Second); err == nil; _, err = v.Verify(t.Context(), token) {
		require.True(t, time.Now().Before(deadline), "it is still believed")
	}
	require.ErrorContains(t, err, "expired")
}

// TestTokenMaxLife: how long a token may be good for is a setting.
func TestTokenMaxLife(t *testing.T) {
	t.Parallel()
	a := authtest.New(t)
	v, err := auth.NewVerifier(auth.Config{JWKS: a.URL + "/jwks.json", MaxLife: 48 * time.Hour, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	now := time.Now()
	for life, fine := range map[time.Duration]bool{48 * time.Hour: true, 48*time.Hour + 2*time.Second: false} {
		_, err := v.Verify(t.Context(), authtest.Sign(t, jwt.SigningMethodES256, a.EC, "ec", authtest.Claims(object{"iat": now.Unix(), "exp": now.Add(life).Unix()})))
		require.Equal(t, fine, err == nil, "%s: %v", life, err)
	}
}
