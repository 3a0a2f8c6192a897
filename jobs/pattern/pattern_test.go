package pattern

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCompileTakesRepetitions(t *testing.T) {
	t.Parallel()
	for source, texts := range map[string][2]string{
		`^[0-9]{5}$`:            {"12345", "1234"},
		`^[a-z]{1,255}$`:        {"abc", ""},
		`^(\d{3}-){2}\d{4}$`:    {"555-123-4567", "555-1234"},
		`^.{0,1000}$`:           {strings.Repeat("é", 1000), strings.Repeat("é", 1001)},
		`x{2,}`:                 {"axxxb", "axb"},
		`(?i)^straße$`:          {"STRAßE", "strasse"},
		`^\p{L}+(\s\p{L}+){0}$`: {"Åsa", "Åsa B"},
	} {
		p, err := Compile(source)
		require.NoError(t, err, source)
		require.True(t, p.MatchString(texts[0]), "%s %s", source, texts[0])
		require.False(t, p.MatchString(texts[1]), "%s %s", source, texts[1])
		require.Equal(t, source, p.String())
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for source, why := range map[string]string{
		`(`:                              "missing closing",
		strings.Repeat("a", MaxSource+1): "4097 bytes",
		strings.Repeat("(a{1000})", 11):  "instructions",
		strings.Repeat(`[^x]{500}`, 400): "instructions",
		`((a{100}){100}){100}`:           "invalid repeat count",
	} {
		_, err := Compile(source)
		require.ErrorContains(t, err, why)
	}
	require.NoError(t, Check(strings.Repeat("(a{1000})", 11)), "to check is not to compile")
	require.Error(t, Check(`(`))
}

func TestCostFollowsWhatAMatchCanBeIn(t *testing.T) {
	t.Parallel()
	cost := func(source string, n int) int {
		p, err := Compile(source)
		require.NoError(t, err)
		return p.Cost(n)
	}
	require.Less(t, cost(`^[a-z]{1,255}$`, 20), 200, "one position at a time")
	require.Less(t, cost(`^.{0,1000}$`, 1000), 10_000)
	require.Less(t, cost(`^\w+@\w+\.[a-z]{2,}$`, 100), 2_000)
	require.Greater(t, cost(`(.?){900}`, 1000), 1_000_000, "all positions at once")
	require.Greater(t, cost(`x{0,1000}`, 100_000), 50_000_000)
	require.Greater(t, cost(`a`, 1<<20), 1<<20)
}

// The bound holds: a match takes no longer than some tens of ns a visit, whatever the
// pattern. The factor is generous because the machine may be busy.
func FuzzCost(f *testing.F) {
	f.Add(`(.?){900}`, `aaaa`)
	f.Add(`(x+x+)+y`, `xx`)
	f.Add(`^(a|a?)+$`, `a`)
	f.Add(`(\pL{1,30}){1,30}`, `é`)
	f.Add(`(?:(?:a*)*)*b`, `a`)
	f.Fuzz(func(t *testing.T, source, piece string) {
		p, err := Compile(source)
		if err != nil || piece == "" {
			return
		}
		text := strings.Repeat(piece, 1+4096/len(piece))
		began := time.Now()
		matched := p.MatchString(text)
		took := time.Since(began)
		require.Less(t, took, time.Second+time.Duration(p.Cost(len(text)))*2*time.Microsecond)
		require.Equal(t, regexp.MustCompile(source).MatchString(text), matched)
	})
}
