package auth

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// FuzzClaims: what is read of a token's claims stands there, under that very name and in
// that very form; a text that says the same in another spelling is refused whole.
func FuzzClaims(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"exp":1,"EXP":2}`, `{"exp":"1"}`, `{"exp":1.5,"nbf":0,"iat":1e3}`, `{"exp":-1}`, `{"exp":null,"tenant_id":null}`,
		`{"tenant_id":"a","Tenant_ID":"b"}`, `{"tenant_\u0069d":"a"}`, `{"\u017fcope":"tasks:read"}`, `{"aud":["api",1]}`, `{"aud":["a","api"]}`,
		`{"is_service_account":"false"}`, `{"is_service_account":false,"service_name":"ui-framework"}`, `{"x":{"exp":1,"EXP":2}}`,
		`{"exp":999999999999}`, `{"exp":1000000000000}`, `{"exp":NaN}`, `{"exp":18446744073709551617}`, `{"sub":"\ud83d\ude00"}`, `[]`, `"exp"`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if jsonguard.Check([]byte(text)) != nil {
			return // such a token is refused before its claims are read
		}
		var c claims
		err := c.UnmarshalJSON([]byte(text))
		var members map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &members) != nil || members == nil {
			require.Error(t, err)
			return
		}
		for name := range members {
			for _, known := range claimNames {
				if name != known && strings.EqualFold(name, known) {
					require.Error(t, err, name)
				}
			}
		}
		if err != nil {
			require.IsType(t, InvalidToken(""), err)
			return
		}
		for name, got := range map[string]string{"iss": c.issuer, "sub": c.subject, "scope": c.scope, "service_name": c.name, "tenant_id": c.tenant} {
			var want string
			if raw, there := members[name]; there {
				require.NoError(t, json.Unmarshal(raw, &want), name)
			}
			require.Equal(t, want, got, name)
		}
		for name, date := range map[string]interface{ Unix() int64 }{"exp": c.expires, "nbf": c.notBefore, "iat": c.issued} {
			raw, there := members[name]
			if !there || string(raw) == "null" {
				require.Nil(t, date, name)
				continue
			}
			want, err := strconv.ParseFloat(string(raw), 64) // no text: that has quotes
			require.NoError(t, err, name)
			require.Equal(t, int64(math.Floor(want)), date.Unix(), name)
			require.NotContains(t, string(raw), "-")
		}
		if raw, there := members["is_service_account"]; there && string(raw) != "null" {
			require.Equal(t, string(raw) == "true", *c.service)
		}
	})
}

// TestLives: how long a token is good for is counted from its issue, else from now.
func TestLives(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		`{"iat": 1000, "exp": 4600}`:   time.Hour,
		`{"iat": 1000.9, "exp": 4600}`: time.Hour,
		`{"iat": 0, "exp": 86401}`:     24*time.Hour + time.Second,
	} {
		var c claims
		require.NoError(t, c.UnmarshalJSON([]byte(text)))
		require.Equal(t, want, c.lives(), text)
	}
}
