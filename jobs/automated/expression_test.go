package automated

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const orderInput = `{"orderId":"ORD-123","items":[{"id":"ITEM-1","quantity":2,"price":10.99},{"id":"ITEM-2","quantity":1,"price":24.99}],"taxRate":0.08}`

var orderTotal = []jobs.Assign{
	{Name: "orderId", Value: "input.orderId"},
	{Name: "subtotal", Value: "round(sum(input.items.map(i, i.quantity * i.price)), 2)"},
	{Name: "tax", Value: "round(output.subtotal * input.taxRate, 2)"},
	{Name: "total", Value: "round(output.subtotal + output.tax, 2)"},
}

func expressionJob(input string, list ...jobs.Assign) jobs.Job {
	return jobs.Job{Input: json.RawMessage(input), Config: jobs.ExecutionConfig{Expression: list}}
}

// evaluate works out one expression and returns its JSON.
func evaluate(x *Expression, input, source string) (string, error) {
	result, err := x.Execute(context.Background(), expressionJob(input, jobs.Assign{Name: "v", Value: source}))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(result.Output), `{"v":`), `}`), nil
}

func TestExpressionOrderTotal(t *testing.T) {
	t.Parallel()
	require.NoError(t, CheckExpression(orderTotal))
	result, err := NewExpression().Execute(t.Context(), expressionJob(orderInput, orderTotal...))
	require.NoError(t, err)
	require.Equal(t, `{"orderId":"ORD-123","subtotal":46.97,"tax":3.76,"total":50.73}`, string(result.Output))
}

// The limit of costs leaves room for the 20,000 lines that a body may hold; a test
// under the race detector does not.
func TestExpressionLargeOrder(t *testing.T) {
	t.Parallel()
	const lines = 3_000
	input := `{"orderId":"ORD-1","items":[` + strings.Repeat(`{"id":"ITEM-1","quantity":2,"price":10.99},`, lines-1) + `{"id":"LAST","quantity":1,"price":0.5}],"taxRate":0.08}`
	result, err := NewExpression().Execute(t.Context(), expressionJob(input, orderTotal...))
	require.NoError(t, err)
	require.Contains(t, string(result.Output), fmt.Sprintf(`"subtotal":%.2f,`, 21.98*(lines-1)+0.5))
}

func TestExpressionValues(t *testing.T) {
	t.Parallel()

	const input = `{"i":7,"j":2,"d":2.5,"w":3.0,"e":1e3,"s":"text","big":9007199254740993,"price":1250000.5,"max":9223372036854775807,
		"l":[1,2.5,3],"none":[],"m":{"b":1,"a":{"x":null}},"t":true,"at":"2024-05-01T10:00:00+02:00","neg":-2.5,"tiny":1e-7,"huge":1e22,"u":18446744073709551615}`
	x := NewExpression()
	for source, want := range map[string]string{
		// every mix of numbers
		"input.i * input.d": "17.5", "input.d * input.i": "17.5", "input.i * input.j": "14", "2 * input.d": "5", "input.d * 2": "5",
		"2 * 10.99": "21.98", "10.99 * 2": "21.98", "input.i / input.j": "3.5", "input.i / 7": "1", "size(input.l) / 2": "1",
		"input.i / 2.0": "3.5", "input.i % input.j": "1", "input.d % 2": "0.5", "input.i + 0.5": "7.5", "input.i - input.d": "4.5",
		"sum(input.l) / size(input.l)": "2.1666666666666665", "size(input.l) * 1.5": "4.5", "-input.d": "-2.5", "-input.i": "-7",
		"input.max + 1": "9223372036854776000", "input.max * 2": "18446744073709552000", "round(input.d, 0) * 2": "6",
		"input.i > input.d": "true", "input.i == 7.0": "true", "input.w == 3": "true", "7.0 in [input.i]": "true", "input.i >= 7.5": "false",
		// numbers in and out
		"input.w": "3", "input.e": "1000", "input.big": "9007199254740993", "input.d + 0.5": "3", "input.tiny": "1e-07", "input.huge": "1e+22",
		"input.u": "18446744073709551615", "[input.u]": "[18446744073709551615]", "input.u - 1": "18446744073709552000", "input.u * 2": "36893488147419103000",
		"1 + input.u": "18446744073709552000", "input.u / 2": "9223372036854776000", "input.u > input.i": "true", "input.i < input.u": "true", "input.u == input.u": "true",
		"sum([input.u, 1])": "18446744073709552000", "math.greatest(input.u, input.i)": "18446744073709551615", "string(input.u)": `"18446744073709551615"`,
		"round(input.u, 2)": "18446744073709551615", "math.abs(input.u)": "18446744073709551615",
		"input.neg + 2.5": "0", "0.0 * input.neg": "0", "12u": "12",
		// functions
		"round(1.005, 2)": "1.01", "round(-2.5, 0)": "-3", "round(input.i, 2)": "7", "round(0.285, 2)": "0.29", "round(1e300, 2)": "1" + "e+300",
		"sum([])": "0", "sum(input.none)": "0", "sum([1, 2])": "3", "sum([0.5, 1, 1.5])": "3",
		"math.ceil(input.i)": "7", "math.ceil(input.d)": "3", "math.greatest(input.i, input.d)": "7", "math.isNaN(input.i)": "false", "math.abs(input.neg)": "2.5",
		`"#" + string(input.i)`: `"#7"`, "string(input.w)": `"3"`, "string(input.price)": `"1250000.5"`, "string(input.t)": `"true"`,
		"input.s.substring(0, input.j)": `"te"`, "input.s.upperAscii()": `"TEXT"`, `input.s.replace("t", "T", 1)`: `"Text"`, `input.s.replace("", "-")`: `"-t-e-x-t-"`,
		`["a", "b"].join(", ")`: `"a, b"`, `["a", "b"].join()`: `"ab"`, `"a,b".split(",")`: `["a","b"]`, `input.s.matches("^t.*t$")`: "true",
		"input.l[input.j]": "3", "input.l[2.0]": "3", "input.l.filter(n, n > 1).size()": "2", "input.m.a.x == null": "true",
		// shapes
		"input.m": `{"a":{"x":null},"b":1}`, `{"b": 1, "a": [true]}`: `{"a":[true],"b":1}`, "input": "", "null": "null", "[]": "[]", "{}": "{}",
		`timestamp(input.at)`: `"2024-05-01T08:00:00Z"`, `duration("90s")`: `"1m30s"`, `b"hi"`: `"aGk="`, "has(input.zzz)": "false", "context": "{}",
		`input.t ? "yes" : "no"`: `"yes"`, `"<é>"`: `"\u003cé\u003e"`,
	} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, CheckExpression([]jobs.Assign{{Name: "v", Value: source}}))
			got, err := evaluate(x, input, source)
			require.NoError(t, err)
			if want == "" {
				require.True(t, json.Valid([]byte(got)))
				return
			}
			require.Equal(t, want, got)
		})
	}
}

func TestExpressionFailures(t *testing.T) {
	t.Parallel()

	input := `{"s":"` + strings.Repeat("x", 100_000) + `","l":[` + strings.Repeat("1,", 2000) + `1],"d":2.5,"z":0,"strings":["a",1]}`
	x := NewExpression()
	for source, code := range map[string]string{
		"input.": "EXPRESSION_INVALID", "nobody + 1": "EXPRESSION_INVALID", `"a" * 2`: "EXPRESSION_INVALID", "round(1)": "EXPRESSION_INVALID", `sum("a")`: "EXPRESSION_INVALID",
		`"%s".format([input.s])`: "EXPRESSION_INVALID", strings.Repeat("(", 500) + "1" + strings.Repeat(")", 500): "EXPRESSION_INVALID",
		strings.Repeat("1+", 4000) + "1": "EXPRESSION_INVALID",

		"input.missing": "EXPRESSION_ERROR", "input.s * 2": "EXPRESSION_ERROR", "input.d / input.z": "EXPRESSION_ERROR", "input.z / input.z": "EXPRESSION_ERROR", "1 / 0": "EXPRESSION_ERROR",
		"input.d % 0": "EXPRESSION_ERROR", "sum(input.strings)": "EXPRESSION_ERROR", "round(input.s, 2)": "EXPRESSION_ERROR", "round(input.d, 99)": "EXPRESSION_ERROR", "round(input.d, -1)": "EXPRESSION_ERROR",
		"input.strings.join()": "EXPRESSION_ERROR", "1e308 * input.d * 10.0": "EXPRESSION_ERROR", `"\u0000"`: "EXPRESSION_ERROR", `{"1": 1, 1: 2}`: "EXPRESSION_ERROR", "type(1)": "EXPRESSION_ERROR",
		`"a".replace(input.d, "b")`: "EXPRESSION_ERROR", "input.l[7/2.0]": "EXPRESSION_ERROR", `timestamp("x")`: "EXPRESSION_INVALID", "timestamp(input.s)": "EXPRESSION_ERROR", "math.ceil(input.s)": "EXPRESSION_ERROR",
		`input.s.replace("", input.s)`: "EXPRESSION_ERROR", "input.l.map(i, input.s).join()": "EXPRESSION_ERROR", `input.s.matches("(a{1000}){1000}")`: "EXPRESSION_INVALID", `"a".matches(input.strings[0] + "(")`: "EXPRESSION_ERROR",

		"input.l.map(a, input.l.map(b, input.l.map(c, c in input.l)))": "EXPRESSION_COST",
		"input.l.map(a, sum(input.l))":                                 "EXPRESSION_COST",
		"input.l.map(a, input.s + input.s).size()":                     "EXPRESSION_COST",
		"input.l.map(a, input.l == input.l)":                           "EXPRESSION_COST",
		"input.l.exists(a, [input.l] == [input.l] && a == 2)":          "EXPRESSION_COST",
		"input.l.filter(a, 5 in input.l)":                              "EXPRESSION_COST",
		"input.l.map(a, input.s)":                                      "EXPRESSION_COST",
		"input.l.map(a, input.s.contains(\"y\"))":                      "EXPRESSION_COST",
		`input.s.matches(".{900}" + input.strings[0])`:                 "EXPRESSION_COST",
	} {
		name := source
		if len(name) > 60 {
			name = name[:60]
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := evaluate(x, input, source)
			var f *jobs.Failure
			require.ErrorAs(t, err, &f)
			require.Equal(t, code, f.Code, f.Message)
			require.NotNil(t, f.Retryable)
			require.False(t, *f.Retryable)
			require.LessOrEqual(t, len([]rune(f.Message)), maxMessage)
		})
	}

	t.Run("BadInput", func(t *testing.T) {
		t.Parallel()
		_, err := evaluate(x, `{`, "1")
		require.ErrorContains(t, err, "EXPRESSION_ERROR")
	})
}

func TestExpressionStopsWithItsContext(t *testing.T) {
	t.Parallel()
	x := NewExpression()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := x.Execute(ctx, expressionJob(`{}`, jobs.Assign{Name: "v", Value: "1"}))
	require.ErrorIs(t, err, context.Canceled)

	// The deadline passes while the loop runs, before the limit of costs does.
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	list := `{"l":[` + strings.Repeat("1,", 800) + `1]}`
	_, err = x.Execute(ctx, expressionJob(list,
		jobs.Assign{Name: "a", Value: "input.l.map(a, input.l.exists(b, b > 2)).size()"},
		jobs.Assign{Name: "b", Value: "input.l.map(a, input.l.exists(b, b > 3)).size()"}))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	var f *jobs.Failure
	require.NotErrorAs(t, err, &f)
}

func TestCheckExpression(t *testing.T) {
	t.Parallel()

	for name, tt := range map[string]struct {
		list []jobs.Assign
		want []string
	}{
		"Empty":       {nil, []string{"is empty"}},
		"TooMany":     {make([]jobs.Assign, 65), []string{"65 members"}},
		"Syntax":      {[]jobs.Assign{{Name: "a", Value: "1 +"}}, []string{"expression[0] (a): "}},
		"UnknownName": {[]jobs.Assign{{Name: "a", Value: "inputs.x"}}, []string{"undeclared reference to 'inputs'"}},
		"Types":       {[]jobs.Assign{{Name: "a", Value: `1 + "a"`}}, []string{"no matching overload"}},
		"NoName":      {[]jobs.Assign{{Value: "1"}}, []string{"has no name"}},
		"Twice":       {[]jobs.Assign{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}, []string{"expression[1] (a): is computed twice"}},
		"Order":       {[]jobs.Assign{{Name: "a", Value: "output.b"}, {Name: "b", Value: "output.b"}}, []string{"expression[0] (a): output.b is not computed before", "expression[1] (b): output.b"}},
		"Constant":    {[]jobs.Assign{{Name: "a", Value: `timestamp("x")`}}, []string{"invalid RFC 3339"}},
		"Both":        {[]jobs.Assign{{Name: "a", Value: "1 +"}, {Name: "b", Value: "x"}}, []string{"expression[0]", "expression[1]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := CheckExpression(tt.list)
			for _, want := range tt.want {
				require.ErrorContains(t, err, want)
			}
		})
	}

	require.NoError(t, CheckExpression([]jobs.Assign{{Name: "a", Value: `input.zip.matches("^[0-9]{5}$")`}}))

	var wrong *ExpressionError
	require.ErrorAs(t, CheckExpression([]jobs.Assign{{Name: "a", Value: "1"}, {Name: "b", Value: "("}}), &wrong)
	require.Equal(t, 1, wrong.Index)
	require.Equal(t, "b", wrong.Name)
}

// Arithmetic over JSON numbers agrees with float64, however the numbers are written.
func TestExpressionArithmeticProperties(t *testing.T) {
	t.Parallel()
	x := NewExpression()
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(
			rapid.Map(rapid.IntRange(-1_000_000, 1_000_000), func(n int) float64 { return float64(n) }),
			// To the millionth: what is smaller than 1e-308 is no number that is taken.
			rapid.Map(rapid.Float64Range(-1e6, 1e6), func(f float64) float64 { return math.Round(f*1e6) / 1e6 }),
		)
		a, b := number.Draw(t, "a"), number.Draw(t, "b")
		input := fmt.Sprintf(`{"a":%s,"b":%s}`, strconv.FormatFloat(a, 'g', -1, 64), strconv.FormatFloat(b, 'f', -1, 64))
		for operator, want := range map[string]float64{"+": a + b, "-": a - b, "*": a * b, "/": a / b} {
			if operator == "/" && b == 0 || math.IsInf(want, 0) {
				continue
			}
			out, err := evaluate(x, input, "input.a "+operator+" input.b")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := strconv.ParseFloat(out, 64); err != nil || got != want {
				t.Fatalf("%s %s: got %s, want %v", input, operator, out, want)
			}
		}
		out, err := evaluate(x, input, "round(input.a, 2)")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := strconv.ParseFloat(out, 64); math.Abs(got-a) > 0.005000001 {
			t.Fatalf("round(%v, 2) is %s", a, out)
		}
	})
}

func FuzzExpression(f *testing.F) {
	for _, assign := range orderTotal {
		f.Add(assign.Value)
	}
	for _, seed := range []string{
		"input.items[0].price / 2", `input.orderId.replace("O", "0").split("-").join("+")`, "[1, 2u, 3.0].map(x, x * 2.5)", `{"a": 1, 2: [null, true]}`,
		"math.ceil(input.taxRate) % 2", `timestamp("2024-01-01T00:00:00Z") + duration("1h")`, "size(input.items) / 2 + 7 / 2", `"a".charAt(7 / 2)`, "math.abs(-9223372036854775808)",
		"string(1.5) + string(b'x')", "input.items.all(i, has(i.id))", "1 in {1: 2}", "sum([1, [2]])", "round(1e-320, 3)", "math.sqrt(7 - 2.5)", `input["x"].y`, "-(1.5 * 2)", "google.protobuf.Struct{}",
	} {
		f.Add(seed)
	}
	x := NewExpression()
	f.Fuzz(func(t *testing.T, source string) {
		list := []jobs.Assign{{Name: "v", Value: source}}
		checked := CheckExpression(list)
		result, err := x.Execute(context.Background(), expressionJob(orderInput, list...))
		if err != nil {
			// CEL turns panics into errors. One is known and its own: it measures a
			// pattern made at run time before simplifying it.
			if strings.Contains(err.Error(), "internal error") && !strings.Contains(err.Error(), "regexp: unhandled case") {
				t.Fatalf("%q: %v", source, err)
			}
			return
		}
		if checked != nil && !strings.Contains(checked.Error(), "not computed before") {
			t.Fatalf("%q runs, but is refused: %v", source, checked)
		}
		if err := jsonguard.Check(result.Output); err != nil {
			t.Fatalf("%q gives %q: %v", source, result.Output, err)
		}
	})
}

func BenchmarkExpression(b *testing.B) {
	x := NewExpression()
	job := expressionJob(orderInput, orderTotal...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Execute(b.Context(), job); err != nil {
			b.Fatal(err)
		}
	}
}
