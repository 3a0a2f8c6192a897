package api

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/canonical"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

func TestNormalizeKeepsTheCallersContent(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{
		`{"timeout": 1000.0, "input": {"n": 1.0, "dueDate": "2026-12-01t10:00:00z"}}`:       `{"timeout": 1000, "input": {"n": 1.0, "dueDate": "2026-12-01t10:00:00z"}}`,
		`{"\u0069nput": {"n": 1.0}, "n": [1e2, -1.50e1, -0.0, 0e9]}`:                        `{"\u0069nput": {"n": 1.0}, "n": [100, -15, 0, 0]}`,
		`{"inputPatch": [{"value": 1.0}, {"value": {"a": 2.0}}, {"value": [3.0]}]}`:         `{"inputPatch": [{"value": 1.0}, {"value": {"a": 2.0}}, {"value": [3.0]}]}`,
		`{"data": {"n": 1.0}, "output": {"a": "}\"", "b": [1.0, "]"]}, "n": 1.0}`:           `{"data": {"n": 1.0}, "output": {"a": "}\"", "b": [1.0, "]"]}, "n": 1}`,
		`{"dueDate": "2026-12-01t10:00:00z", "reason": "2026-12-01t10:00:00z", "n": 1.5}`:   `{"dueDate": "2026-12-01T10:00:00Z", "reason": "2026-12-01t10:00:00z", "n": 1.5}`,
		`{"n": 1e18, "m": 1e17, "big": 1e300, "tiny": 1e-300, "long": 1.00000000000000001}`: `{"n": 1e18, "m": 100000000000000000, "big": 1e300, "tiny": 1e-300, "long": 1.00000000000000001}`,
		`{"input": null, "output": 1.0, "a": [], "b": {}, "c": [{}, []]}`:                   `{"input": null, "output": 1, "a": [], "b": {}, "c": [{}, []]}`,
		` 1.0 `: ` 1 `, `[]`: `[]`, `"x"`: `"x"`,
	} {
		require.Equal(t, want, string(normalize([]byte(from))), from)
	}
}

// FuzzNormalize: whatever passes the guard is the same document afterwards, times apart.
func FuzzNormalize(f *testing.F) {
	for _, seed := range []string{
		`{"a": 1.0, "b": [1e3, {"c": -0.0}], "input": {"n": 1.0}}`, `[1.5e1, "\"", {"value": {"x": "}"}}]`, `{"dueDate": "2026-12-01t10:00:00z"}`, `1e-2`, `{"\"": {"": 1E+2}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		want, err := canonical.Hash(doc)
		if err != nil {
			return
		}
		after := normalize(doc)
		require.NoError(t, jsonguard.Check(after), "%s", after)
		got, err := canonical.Hash(after)
		require.NoError(t, err)
		if string(after) != string(doc) && len(after) == len(doc) {
			return // a time in capitals has the length that it had
		}
		require.Equal(t, want, got, "%s became %s", doc, after)
	})
}
