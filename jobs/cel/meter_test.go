package cel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// used is the processor time that this process has had, which other processes do not
// make longer.
func used(t require.TestingT) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The bounds of one evaluation: some tenths of a second, and some 100 MiB in all, of
// which most is free again at once. The tests leave room for a busy machine. The race
// detector takes ten times as long, and makes a sync.Pool drop one value in four: package
// regexp then allocates a machine of 250 KB for every fourth match of (.?){900}.
const (
	longest = 10 * time.Second * slowdown
	most    = 320 << 20 * slowdown
)

// measured works source out over input, writes what it comes to, and holds both
// against their bounds.
func measured(t require.TestingT, env *Env, source string, input any) error {
	p, err := env.Compile(source)
	if err != nil {
		return err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := used(t)
	v, err := p.Eval(context.Background(), map[string]any{"input": input})
	if err == nil {
		err = new(Encoder).Value(v, 0)
	}
	took := used(t) - began
	runtime.ReadMemStats(&after)
	require.Less(t, took, longest, "%s", source)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(most), "%s", source)
	return err
}

// large is an input of about 1 MiB with a member for each kind of attack.
func large(t require.TestingT) any {
	var b strings.Builder
	b.WriteString(`{"n":2.5,"s":"` + strings.Repeat("x", 300_000) + `","y":"` + strings.Repeat("x", 150_000) + `y","p":"(.?){900}y","tz":"Europe/Berlin","t":"2026-01-01T00:00:00Z",`)
	b.WriteString(`"l":[` + strings.Repeat("1,", 100_000) + `2],"strings":[` + strings.Repeat(`"abc",`, 20_000) + `"abd"],"m":{`)
	for i := range 10_000 {
		fmt.Fprintf(&b, `"k%d":%d,`, i, i)
	}
	b.WriteString(`"` + strings.Repeat("x", 20_000) + `":1},"tiny":[` + strings.Repeat("1e-300,", 5000) + `1.5e-5]}`)
	require.Less(t, b.Len(), 1<<20)
	v, err := Decode(json.RawMessage(b.String()))
	require.NoError(t, err)
	return v
}

func twice(times int, seed string) string {
	return seed + strings.Repeat(".map(a,a+a)", times)
}

// Expressions that burned a processor for ever, or took the memory of the process.
//
//nolint:paralleltest // it measures what is used while nothing else runs
func TestCostIsBounded(t *testing.T) {
	env, input := Names("input"), large(t)
	dear := ErrCost.Error()
	for source, want := range map[string]string{
		"sum(" + twice(50, "[[1,1]]") + "[0])":                                              dear,
		twice(50, `[["a","b"]]`) + "[0].join()":                                             dear,
		twice(50, "[[1,1]]") + " == " + twice(50, "[[1,1]]"):                                dear,
		"7 in " + twice(50, "[[1,1]]") + "[0]":                                              dear,
		"math.greatest(" + twice(50, "[[1,1]]") + "[0])":                                    dear,
		twice(50, `["ab"]`):                                                                 "longer than 1 MiB",
		twice(28, "[(input.strings + [1])[0]]"):                                             "longer than 1 MiB", // numbers, to the checker
		twice(28, "[([[1]] + input.strings)[1]]"):                                           "longer than 1 MiB",
		twice(50, `[b"ab"]`):                                                                "longer than 1 MiB",
		"size(" + twice(19, "[[1,1]]") + "[0])":                                             dear,
		"input.l.map(a, input.l)[7][8] + size(input.l + input.l)":                           "",
		"input.l.exists(a, input.l + input.l == [])":                                        dear,
		"input.l.map(a, input.l.map(b, [a, b]))":                                            dear,
		"input.l.map(a, sum(input.l))":                                                      dear,
		"input.l.exists(a, input.l == input.l && false)":                                    dear,
		"input.l.exists(a, 7 in input.l)":                                                   dear,
		"input.l.exists(a, input.m == input.m && false)":                                    dear,
		"input.l.exists(a, input.m.exists(k, true) && false)":                               dear,
		"input.l.exists(a, input.m[input.s] == a || false)":                                 dear,
		"input.l.exists(a, input.s in input.m)":                                             dear,
		`input.l.exists(a, input.s in ["a", "b"])`:                                          "",
		"input.l.exists(a, input.s == input.y + input.y)":                                   dear,
		"input.l.exists(a, input.s > input.y)":                                              dear,
		"input.l.exists(a, input.s.contains(input.y))":                                      dear,
		"input.l.exists(a, input.s.startsWith(input.y))":                                    dear,
		"input.s.indexOf(input.y)":                                                          "",
		"input.s.lastIndexOf(input.y)":                                                      "",
		"input.l.exists(a, input.s.indexOf(input.y) > 0)":                                   dear,
		"input.l.exists(a, input.s.lastIndexOf(\"y\") > 0)":                                 dear,
		"input.l.exists(a, input.s.charAt(a) == \"y\")":                                     dear,
		"input.l.exists(a, input.s.substring(a, 7) == \"y\")":                               dear,
		"input.l.exists(a, size(input.s) < 7)":                                              dear,
		"input.l.exists(a, input.s.reverse() == \"y\")":                                     dear,
		"input.l.exists(a, input.s.upperAscii() == \"y\")":                                  dear,
		"input.l.exists(a, strings.quote(input.s) == \"y\")":                                dear,
		"input.l.exists(a, input.s.trim() == \"y\")":                                        dear,
		"input.l.exists(a, int(input.s) == 1 || false)":                                     dear,
		"input.l.exists(a, timestamp(input.s) == null || false)":                            dear,
		"input.l.exists(a, bytes(input.s) == b\"y\")":                                       dear,
		"input.l.exists(a, timestamp(input.t).getHours(input.tz)>99)":                       dear,
		`input.s.replace("", input.s)`:                                                      "longer than 1 MiB",
		`input.l.exists(a, input.s.replace("x", "") == "y")`:                                dear,
		`input.l.exists(a, size(input.s.split("")) == 7)`:                                   dear,
		`input.strings.map(a, input.strings.join(","))`:                                     dear,
		`input.s.matches("(.?){900}y")`:                                                     dear,
		`input.s.matches(input.p)`:                                                          dear,
		`input.l.all(a, input.m.exists(k, "x".reverse().matches("(.?){900}y")))`:            dear,
		`input.l.exists(a, input.y.matches("z$"))`:                                          dear,
		`input.l.exists(a, "a".matches("(" + string(a) + ".?){900}"))`:                      dear,
		"input.tiny.map(a, input.tiny.map(b, round(b, 15)))":                                dear,
		"input.l.exists(a, input" + strings.Repeat(".m", 40) + " == 1 || false)":            dear,
		"input.l.exists(a, a in [" + strings.Repeat("a,", 1500) + "7])":                     "",
		"input.l.map(a, {" + strings.Repeat(`"k":a,`, 500) + "})":                           dear,
		"[" + strings.Repeat("0,", 1900) + "0].map(a, [" + strings.Repeat("0,", 50) + "a])": "",
		"input.l.map(a, true ? input.s : input.y)":                                          "",
		"input.strings.filter(a, a.size() == 3).map(a, a + a)[0]":                           "",
		"sum(input.l.map(a, a * input.n))":                                                  "",
		"google.protobuf.Struct{fields: {}}":                                                "messages are not available",
		`"%s".format([input.s])`:                                                            "format is not available",
	} {
		name := source
		if len(name) > 70 {
			name = name[:70]
		}
		t.Run(name, func(t *testing.T) {
			began := used(t)
			err := measured(t, env, source, input)
			t.Log((used(t) - began).Round(time.Millisecond))
			if want == "" {
				if errors.Is(err, ErrTooLarge) {
					err = nil // to write it is another matter
				}
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, want)
		})
	}
}

// The expressions of one output share a budget.
func TestBudgetIsShared(t *testing.T) {
	t.Parallel()
	env := Names("l")
	p, err := env.Compile("size(l.filter(a, a > 0 && a < 7 && a != 3))")
	require.NoError(t, err)
	vars := map[string]any{"l": make([]any, 40_000)}
	for i := range 40_000 {
		vars["l"].([]any)[i] = int64(1)
	}
	budget, done := NewBudget(), 0
	for ; err == nil; done++ {
		_, err = p.EvalFrom(t.Context(), budget, vars)
	}
	require.ErrorIs(t, err, ErrCost)
	require.Greater(t, done, 2)
	require.Less(t, done, 10)
}

// A context that ends stops every loop of ours at once, not only CEL's.
func TestEveryLoopObeysTheContext(t *testing.T) {
	t.Parallel()
	list := make([]any, 100_000)
	texts := make([]any, 100_000)
	for i := range list {
		list[i], texts[i] = int64(1), "a"
	}
	vars := map[string]any{"l": list, "k": append([]any{}, list...), "s": texts}
	for _, source := range []string{"sum(l)", "l == k", "7 in l", "s.join()", "l.exists(a, a == 7)", "l.map(a, a)"} {
		p, err := Names("l", "k", "s").Compile(source)
		require.NoError(t, err)
		_, err = p.Eval(t.Context(), vars)
		require.NoError(t, err, source)
		_, err = p.Eval(&expiring{Context: t.Context()}, vars)
		require.ErrorIs(t, err, context.DeadlineExceeded, source)
	}
}

// expiring has ended when it is asked for the third time.
type expiring struct {
	context.Context
	asked int
}

func (e *expiring) Err() error {
	if e.asked++; e.asked >= 3 {
		return context.DeadlineExceeded
	}
	return nil
}

// Any expression of at most 4 KiB over any input of at most 1 MiB ends within the
// bounds of time and memory.
//
//nolint:paralleltest // it measures what is used while nothing else runs
func TestAnyExpressionEndsWithinItsBounds(t *testing.T) {
	env, input := Names("input"), large(t)
	worked, dear := 0, 0
	rapid.Check(t, func(r *rapid.T) {
		source := genExpression(5).Draw(r, "expression")
		if len(source) > 4<<10 {
			source = genExpression(2).Draw(r, "shorter")
		}
		switch err := measured(r, env, source, input); {
		case err == nil:
			worked++
		case errors.Is(err, ErrCost):
			dear++
		}
	})
	t.Logf("%d were worked out, %d cost too much", worked, dear)
}

// genExpression nests what attacks are made of, mostly with the types that fit.
func genExpression(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(r *rapid.T) string {
		g := &grammar{r: r, vars: []string{}}
		return g.any(depth)
	})
}

type grammar struct {
	r    *rapid.T
	vars []string
}

func (g *grammar) of(choices ...string) string { return rapid.SampledFrom(choices).Draw(g.r, "choice") }

func (g *grammar) any(depth int) string {
	switch g.of("number", "text", "list", "list", "bool") {
	case "number":
		return g.number(depth)
	case "text":
		return g.text(depth)
	case "bool":
		return g.bool(depth)
	}
	return g.list(depth)
}

// loop is one of the macros over a list, with a variable of its own.
func (g *grammar) loop(depth int, macro string, body func(int) string) string {
	name := fmt.Sprintf("v%d", len(g.vars))
	over := g.list(depth - 1)
	g.vars = append(g.vars, name)
	inner := body(depth - 1)
	g.vars = g.vars[:len(g.vars)-1]
	return over + "." + macro + "(" + name + ", " + inner + ")"
}

func (g *grammar) list(depth int) string {
	if depth <= 0 {
		return g.of(append([]string{"input.l", "input.strings", "[1, 2]", `["a"]`, "[[1]]", "input.tiny"}, g.vars...)...)
	}
	switch g.of("add", "map", "filter", "split", "literal", "double", "leaf") {
	case "add":
		return "(" + g.list(depth-1) + " + " + g.list(depth-1) + ")"
	case "map":
		return g.loop(depth, "map", g.any)
	case "filter":
		return g.loop(depth, "filter", g.bool)
	case "split":
		return g.text(depth-1) + `.split("` + g.of("", "x", "a") + `")`
	case "literal":
		return "[" + g.any(depth-1) + ", " + g.any(depth-1) + "]"
	case "double":
		return twice(rapid.IntRange(1, 60).Draw(g.r, "times"), "["+g.any(depth-1)+"]")
	}
	return g.list(0)
}

func (g *grammar) number(depth int) string {
	if depth <= 0 {
		return g.of(append([]string{"1", "2.5", "input.n", "-7"}, g.vars...)...)
	}
	switch g.of("sum", "size", "indexOf", "lastIndexOf", "round", "greatest", "arithmetic", "index", "hours") {
	case "sum":
		return "sum(" + g.list(depth-1) + ")"
	case "size":
		return "size(" + g.list(depth-1) + ")"
	case "indexOf", "lastIndexOf":
		return g.text(depth-1) + "." + g.of("indexOf", "lastIndexOf") + "(" + g.text(depth-1) + ")"
	case "round":
		return "round(" + g.number(depth-1) + ", 2)"
	case "greatest":
		return "math.greatest(" + g.list(depth-1) + ")"
	case "index":
		return g.list(depth-1) + "[" + g.number(depth-1) + "]"
	case "hours":
		return "timestamp(input.t).getHours(input.tz)"
	}
	return "(" + g.number(depth-1) + g.of(" + ", " - ", " * ", " / ", " % ") + g.number(depth-1) + ")"
}

func (g *grammar) text(depth int) string {
	if depth <= 0 {
		return g.of(append([]string{"input.s", "input.y", `"x"`, `""`}, g.vars...)...)
	}
	switch g.of("add", "join", "replace", "string", "reverse", "quote", "upper", "substring", "choice") {
	case "join":
		return g.list(depth-1) + ".join(" + g.text(depth-1) + ")"
	case "replace":
		return g.text(depth-1) + ".replace(" + g.text(depth-1) + ", " + g.text(depth-1) + ")"
	case "string":
		return "string(" + g.any(depth-1) + ")"
	case "reverse":
		return g.text(depth-1) + ".reverse()"
	case "quote":
		return "strings.quote(" + g.text(depth-1) + ")"
	case "upper":
		return g.text(depth-1) + ".upperAscii()"
	case "substring":
		return g.text(depth-1) + ".substring(" + g.number(depth-1) + ")"
	case "choice":
		return "(" + g.bool(depth-1) + " ? " + g.text(depth-1) + " : " + g.text(depth-1) + ")"
	}
	return "(" + g.text(depth-1) + " + " + g.text(depth-1) + ")"
}

func (g *grammar) bool(depth int) string {
	if depth <= 0 {
		return g.of("true", "false", "has(input.m.k1)")
	}
	switch g.of("equal", "in", "exists", "all", "matches", "contains", "and", "key", "less", "names") {
	case "equal":
		return "(" + g.any(depth-1) + g.of(" == ", " != ") + g.any(depth-1) + ")"
	case "in":
		return "(" + g.any(depth-1) + " in " + g.of(g.list(depth-1), "input.m") + ")"
	case "exists", "all":
		return g.loop(depth, g.of("exists", "all", "exists_one"), g.bool)
	case "matches":
		return g.text(depth-1) + ".matches(" + g.of(`"(.?){900}y"`, `"^[a-z]{1,255}$"`, "input.p", g.text(depth-1)) + ")"
	case "contains":
		return g.text(depth-1) + g.of(".contains(", ".startsWith(", ".endsWith(") + g.text(depth-1) + ")"
	case "key":
		return "(input.m[" + g.text(depth-1) + "] == 1)"
	case "less":
		return "(" + g.text(depth-1) + g.of(" < ", " >= ") + g.text(depth-1) + ")"
	case "names":
		return "input.m.exists(k, " + g.bool(depth-1) + ")"
	}
	return "(" + g.bool(depth-1) + g.of(" && ", " || ") + g.bool(depth-1) + ")"
}

// What indexOf and lastIndexOf answer is what CEL's own answer.
func TestSearchIsCELs(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		`"tacocat".indexOf("c")`: "2", `"tacocat".indexOf("none")`: "-1", `"tacocat".indexOf("")`: "0", `"tacocat".indexOf("a", 3)`: "5",
		`"ta©o©αT".indexOf("©")`: "2", `"ta©o©αT".indexOf("©", 3)`: "4", `"ta©o©αT".indexOf("©αT", 3)`: "4", `"".indexOf("a")`: "-1", `"abc".indexOf("", 7)`: "3", `"abc".indexOf("c", 3)`: "-1",
		`"tacocat".lastIndexOf("a")`: "5", `"tacocat".lastIndexOf("")`: "7", `"tacocat".lastIndexOf("a", 4)`: "1", `"ta©o©αT".lastIndexOf("©")`: "4", `"ta©o©αT".lastIndexOf("©", 3)`: "2",
		`"ta©o©αT".lastIndexOf("©α", 4)`: "4", `"hello mellow".lastIndexOf("ello", 6)`: "1", `"hello mellow".lastIndexOf("ello", 20)`: "-1", `"abc".lastIndexOf("abcd")`: "-1", `"abc".lastIndexOf("", 1)`: "1",
		`"a,b,c".split(",")`: `["a","b","c"]`, `"a,b,c".split(",", 2)`: `["a","b,c"]`, `"a,b".split(",", 0)`: `[]`, `"äb".split("")`: `["ä","b"]`,
		`dyn([1, 2]) == [1.0, 2]`: "true", `dyn({"a": [1]}) == {"a": [1.0]}`: "true", `[1] != [2]`: "true", `{"a": 1} == {"b": 1}`: "false", `dyn("a") == 1`: "false", `dyn(2.0) in [1, 2]`: "true", `"a" in {"a": 1}`: "true", `[1] in [[1]]`: "true",
		`{"a": [1, 2]}["a"][v - 1]`: "1", `{"a": 1}[string("a")]`: "1", `[1, 2].map(i, {"k": i})[v]["k"]`: "2",
	} {
		require.Equal(t, want, evaluate(t, source, map[string]any{"v": int64(1)}), source)
	}
	for source, why := range map[string]string{`"abc".indexOf("a", -1)`: "out of range", `"abc".lastIndexOf("a", -1)`: "out of range", `[1][v]`: "out of bounds", `{"a": 1}[string(v)]`: "no such key"} {
		p, err := Names("v").Compile(source)
		require.NoError(t, err)
		_, err = p.Eval(t.Context(), map[string]any{"v": int64(1)})
		require.ErrorContains(t, err, why, source)
	}
}

// Whatever is written, it is compiled or refused, and worked out or refused, soon.
func FuzzCompileAndEval(f *testing.F) {
	for _, seed := range []string{
		"1 + 2", `input.matches("^[0-9]{5}$")`, "sum([1, 2].map(a, a * 2.5))", twice(50, "[[1,1]]"), `{"a": [1]}[input]`, `"a".replace("", "b")`,
		"[1].exists(a, a == 1 || 1/0 > 2)", `timestamp("2026-01-01T00:00:00Z").getHours("Europe/Berlin")`, `strings.quote(b"a")`, "math.greatest([1, 2.5])", "has(input.a.b)",
	} {
		f.Add(seed, `{"a": {"b": ["x", 1.5]}}`)
	}
	env := Names("input")
	f.Fuzz(func(t *testing.T, source, text string) {
		if len(source) > 4<<10 {
			return
		}
		input, err := Decode(json.RawMessage(text))
		if err != nil {
			return
		}
		began := time.Now()
		p, err := env.Compile(source)
		if err != nil {
			return
		}
		v, err := p.Eval(t.Context(), map[string]any{"input": input})
		if err == nil {
			_ = new(Encoder).Value(v, 0)
		}
		require.Less(t, time.Since(began), longest)
	})
}
