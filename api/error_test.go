package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// FuzzProblem: whatever is said of a request, the document stays small and whole.
func FuzzProblem(f *testing.F) {
	f.Add("body.a", "expected string", 20)
	f.Add(strings.Repeat("\x00\u2028\"\\", 100), strings.Repeat("<&>", 100), 90_000)
	f.Fuzz(func(t *testing.T, location, message string, n int) {
		p := problem(422, codeValidation, message)
		for range min(max(n, 0), 40) {
			p.addViolation(location, message)
		}
		_ = p.at(&call{id: strings.Repeat("x", 64), path: "/" + strings.Repeat("y", 255)})
		w := httptest.NewRecorder()
		writeProblem(&call{ResponseWriter: w}, p)
		text := w.Body.Bytes()
		require.True(t, json.Valid(text))
		require.LessOrEqual(t, len(text), 4096)
		require.LessOrEqual(t, len(p.Errors), maxViolations)
		require.True(t, utf8.ValidString(p.Detail))
	})
}

func TestDotted(t *testing.T) {
	t.Parallel()
	for pointer, want := range map[string]string{"": "", "/a": ".a", "/items/0/price": ".items[0].price", "/a~1b/~01": ".a/b.~1", "/": "."} {
		require.Equal(t, want, dotted(pointer))
	}
}
