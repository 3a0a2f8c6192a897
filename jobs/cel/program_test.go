package cel

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// evaluate works source out over these variables and returns its JSON.
func evaluate(t *testing.T, source string, vars map[string]any) string {
	t.Helper()
	names := make([]string, 0, len(vars))
	for name := range vars {
		names = append(names, name)
	}
	p, err := Names(names...).Compile(source)
	require.NoError(t, err)
	v, err := p.Eval(t.Context(), vars)
	require.NoError(t, err)
	var to Encoder
	require.NoError(t, to.Value(v, 0))
	return to.String()
}

func TestNamesAreThoseThatWereGiven(t *testing.T) {
	t.Parallel()
	people := []any{map[string]any{"id": "ann", "openTasks": int64(2)}, map[string]any{"id": "bob", "openTasks": int64(0)}}
	require.Equal(t, `["bob"]`, evaluate(t, `people.filter(p, p.openTasks == 0).map(p, p.id)`, map[string]any{"people": people}))
	_, err := Names("people").Compile("input.x")
	require.ErrorContains(t, err, "undeclared reference to 'input'")
	p, err := Names("output").Compile("output.a + output.b + output.a")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, p.Members("output"))
}

func TestEnvKeepsFewPrograms(t *testing.T) {
	t.Parallel()
	e := Names()
	for i := range maxPrograms + 3 {
		e.programs["filled "+strconv.Itoa(i)] = &Program{}
	}
	p, err := e.Program("1")
	require.NoError(t, err)
	again, err := e.Program("1")
	require.NoError(t, err)
	require.Same(t, p, again)
	require.LessOrEqual(t, len(e.programs), maxPrograms+3)
}

// What is read can be written, and reads as the same.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{``, `{}`, `null`, `[1, 1.0, 1.5, 1e400, -0]`, `{"a": {"b": ["x", true, null]}}`, `{"a":1}{`, `"\u0000"`} {
		f.Add(seed)
	}
	env := Names("v")
	p, err := env.Compile("v")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, text string) {
		read, err := Decode(json.RawMessage(text))
		if err != nil {
			return
		}
		v, err := p.Eval(t.Context(), map[string]any{"v": read})
		require.NoError(t, err)
		var to Encoder
		if to.Value(v, 0) != nil {
			return // deeper or longer than it may be, or a number out of range
		}
		require.True(t, json.Valid(to.Bytes()), "%q", to.Bytes())
		again, err := Decode(to.Bytes())
		require.NoError(t, err)
		require.Equal(t, read, again)
	})
}

// A pattern may count: {n} used to panic in the look for its size.
func TestPatternsMayCount(t *testing.T) {
	t.Parallel()
	vars := map[string]any{"zip": "12345", "pattern": "^[0-9]{5}$"}
	require.Equal(t, "true", evaluate(t, `zip.matches("^[0-9]{5}$")`, vars))
	require.Equal(t, "false", evaluate(t, `zip.matches("^[0-9]{6,}$")`, vars))
	require.Equal(t, "true", evaluate(t, `zip.matches(pattern) && matches(zip, pattern)`, vars))
	require.Equal(t, "true", evaluate(t, `zip.matches("^(" + "[0-9]{2}" + "){2}5$")`, vars))

	for source, why := range map[string]string{
		`zip.matches("(")`:                                      "missing closing",
		`zip.matches("(.{1000}){2}")`:                           "invalid repeat count",
		`zip.matches("` + strings.Repeat("(a{999})", 20) + `")`: "instructions",
	} {
		_, err := Names("zip").Compile(source)
		require.ErrorContains(t, err, why)
	}
	p, err := Names("zip").Compile(`"x".matches(zip)`)
	require.NoError(t, err)
	for text, why := range map[string]string{"(": "missing closing", strings.Repeat("(a{999})", 20): "instructions"} {
		_, err := p.Eval(t.Context(), map[string]any{"zip": text})
		require.ErrorContains(t, err, why)
	}
}
