package peertest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// verify checks a token with nothing but the published JWKS.
func (b *testBundle) verify(t *testing.T, token string) (jwt.MapClaims, error) {
	t.Helper()
	status, body := b.call(t, "GET", "/.well-known/jwks.json", "")
	require.Equal(t, 200, status)
	var set struct {
		Keys []struct{ Kty, Crv, X, Y, Kid, Alg, Use string }
	}
	require.NoError(t, json.Unmarshal([]byte(body), &set))
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(token, claims, func(parsed *jwt.Token) (any, error) {
		for _, key := range set.Keys {
			require.Equal(t, []string{"EC", "P-256", "ES256", "sig"}, []string{key.Kty, key.Crv, key.Alg, key.Use})
			if key.Kid != parsed.Header["kid"] {
				continue
			}
			x, err := base64.RawURLEncoding.DecodeString(key.X)
			require.NoError(t, err)
			y, err := base64.RawURLEncoding.DecodeString(key.Y)
			require.NoError(t, err)
			return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
		}
		return nil, errors.New("unknown key")
	}, jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer("auth-service"), jwt.WithAudience("api"), jwt.WithExpirationRequired())
	return claims, err
}

func TestTokens(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})

	for service, scope := range map[string]string{
		"workflow-orchestrator": "tasks:create tasks:define tasks:read tasks:update tasks:cancel tasks:pause",
		"ui-framework":          "tasks:read tasks:reassign tasks:update",
		"monitoring-service":    "tasks:metrics tasks:read",
		"task-worker":           "tasks:work tasks:read",
		"error-handler":         "tasks:deadletter tasks:read",
		"stranger":              "",
	} {
		claims, err := b.verify(t, b.there.Token(service))
		require.NoError(t, err)
		require.Equal(t, scope, claims["scope"])
		require.Equal(t, service, claims["sub"])
		require.Equal(t, service, claims["service_name"])
		require.Equal(t, service, claims["client_id"])
		require.Equal(t, true, claims["is_service_account"])
		require.NotContains(t, claims, "tenant_id")
		for _, name := range []string{"exp", "nbf", "iat", "jti"} {
			require.Contains(t, claims, name)
		}
	}

	claims, err := b.verify(t, b.there.Token("task-worker", "tasks:read"))
	require.NoError(t, err)
	require.Equal(t, "tasks:read", claims["scope"])

	token, err := b.there.Mint(peertest.TokenOptions{
		Service: "ui-framework", Subject: "sub-1", Tenant: "acme", Scopes: []string{},
		Claims: map[string]any{"client_id": nil, "extra": 1},
	})
	require.NoError(t, err)
	claims, err = b.verify(t, token)
	require.NoError(t, err)
	require.Equal(t, "sub-1", claims["sub"])
	require.Equal(t, "acme", claims["tenant_id"])
	require.Empty(t, claims["scope"])
	require.NotContains(t, claims, "client_id")
	require.EqualValues(t, 1, claims["extra"])

	token, err = b.there.Mint(peertest.TokenOptions{Service: "ui-framework", TTL: -time.Second})
	require.NoError(t, err)
	_, err = b.verify(t, token)
	require.ErrorIs(t, err, jwt.ErrTokenExpired)

	_, err = b.there.Mint(peertest.TokenOptions{})
	require.Error(t, err)
	_, err = peertest.Mint(nil, "", peertest.TokenOptions{Service: "ui-framework"})
	require.Error(t, err)
}

func TestRotation(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})
	first := b.there.Token("task-worker")
	kid := b.there.Rotate()
	require.Equal(t, kid, peertest.KeyID(&b.there.Key().PublicKey))
	second := b.there.Token("task-worker")
	for _, token := range []string{first, second} {
		_, err := b.verify(t, token)
		require.NoError(t, err)
	}
	b.there.Rotate()
	_, err := b.verify(t, first)
	require.ErrorContains(t, err, "unknown key")
	_, err = b.verify(t, second)
	require.NoError(t, err)
}

// A token minted from a key file elsewhere is as good as the server's own.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	b := setup(t, peertest.Config{Key: key})

	read, err := peertest.ParseKey(b.there.KeyPEM())
	require.NoError(t, err)
	require.True(t, read.Equal(key))
	token, err := peertest.Mint(read, "", peertest.TokenOptions{Service: "task-worker"})
	require.NoError(t, err)
	_, err = b.verify(t, token)
	require.NoError(t, err)

	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	parameters := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}})
	read, err = peertest.ParseKey(append(parameters, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...))
	require.NoError(t, err)
	require.True(t, read.Equal(key))

	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	der, err = x509.MarshalPKCS8PrivateKey(other)
	require.NoError(t, err)
	for _, bad := range [][]byte{nil, []byte("key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		_, err = peertest.ParseKey(bad)
		require.Error(t, err)
	}
	_, err = peertest.Start(peertest.Config{Key: other})
	require.Error(t, err)
}

func TestValidateToken(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})
	ask := func(token string) map[string]any {
		status, body := b.call(t, "POST", "/api/auth/validate-token", `{"token":"`+token+`"}`)
		require.Equal(t, 200, status)
		var answer map[string]any
		require.NoError(t, json.Unmarshal([]byte(body), &answer))
		return answer
	}

	token, err := b.there.Mint(peertest.TokenOptions{Subject: "alice", Tenant: "acme", Roles: []string{"admin"}, Scopes: []string{"a", "b"}})
	require.NoError(t, err)
	answer := ask(token)
	require.Equal(t, true, answer["valid"])
	require.Equal(t, "alice", answer["subject"])
	require.Equal(t, "acme", answer["tenantId"])
	require.Equal(t, []any{"admin"}, answer["roles"])
	require.Equal(t, []any{"a", "b"}, answer["permissions"])
	_, err = time.Parse(time.RFC3339, answer["expiresAt"].(string))
	require.NoError(t, err)

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	forged, err := peertest.Mint(other, peertest.KeyID(&b.there.Key().PublicKey), peertest.TokenOptions{Subject: "alice"})
	require.NoError(t, err)
	elsewhere, err := b.there.Mint(peertest.TokenOptions{Subject: "alice", Claims: map[string]any{"aud": "other"}})
	require.NoError(t, err)
	endless, err := b.there.Mint(peertest.TokenOptions{Subject: "alice", Claims: map[string]any{"exp": nil}})
	require.NoError(t, err)
	for _, bad := range []string{"x", forged, elsewhere, endless} {
		require.Equal(t, map[string]any{"valid": false, "roles": []any{}, "permissions": []any{}}, ask(bad))
	}

	status, _ := b.call(t, "POST", "/api/auth/validate-token", `{}`)
	require.Equal(t, 400, status)
}
