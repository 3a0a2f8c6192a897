package outbox_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/outbox"
)

// The examples of the bindings of CloudEvents, and what is near them.
func TestEncodeAttribute(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"":             "",
		"plain-1_2.3~": "plain-1_2.3~",
		`a%41b"c d`:    "a%2541b%22c%20d",
		"Euro € 😀":     "Euro%20%E2%82%AC%20%F0%9F%98%80",
		"a\r\nb\x7f\t": "a%0D%0Ab%7F%09",
		"a+b/c?d=e;f,": "a+b/c?d=e;f,",
		"ü":            "%C3%BC",
	} {
		require.Equal(t, want, outbox.EncodeAttribute(value), value)
		require.Equal(t, value, outbox.DecodeAttribute(want), want)
	}
}

// What others write: quoted, in lower case, or not encoded at all.
func TestDecodeAttribute(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`"a b"`: "a b", `"a \"b\" \\"`: `a "b" \`, "%e2%82%ac": "€", "a b": "a b", "100%": "100%", "%zz": "%zz", "%ff": "%ff", `"`: `"`, "%41": "A",
	} {
		require.Equal(t, want, outbox.DecodeAttribute(text), text)
	}
}

// Any text comes back as it was, by our reader and by one that is not ours, and its header
// is of printable ASCII alone.
func TestAttributesComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.String().Draw(t, "value")
		text := outbox.EncodeAttribute(value)
		require.Equal(t, value, outbox.DecodeAttribute(text))
		theirs, err := url.PathUnescape(text)
		require.NoError(t, err)
		require.Equal(t, value, theirs)
		require.NotContains(t, text, `"`)
		require.Equal(t, -1, strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }))
	})
}
