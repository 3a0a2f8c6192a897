package cel

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// ownFunctions are the functions that this package implements for all their overloads:
// functions that CEL does not have, functions that CEL defines for only one kind of
// number, and functions whose work or output can exceed the size of their arguments.
var ownFunctions = map[string]func(m *meter, args []ref.Val) ref.Val{
	"sum":         sum,
	"round":       round,
	"math.ceil":   whole(math.Ceil),
	"math.floor":  whole(math.Floor),
	"math.round":  whole(math.Round),
	"math.trunc":  whole(math.Trunc),
	"math.isNaN":  test(math.IsNaN),
	"math.isInf":  test(func(f float64) bool { return math.IsInf(f, 0) }),
	"string":      toText,
	"replace":     replace,
	"join":        join,
	"split":       split,
	"indexOf":     indexOf,
	"lastIndexOf": lastIndexOf,

	"math.isFinite": test(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) }),

	operators.Equals:    func(m *meter, args []ref.Val) ref.Val { return types.Bool(equal(m, args[0], args[1])) },
	operators.NotEquals: func(m *meter, args []ref.Val) ref.Val { return types.Bool(!equal(m, args[0], args[1])) },
	operators.In:        contains,
	operators.OldIn:     contains,
	rangeFunction:       loopRange,
	indexFunction:       index,
}

var errTooLong = types.NewErr("text longer than 1 MiB")

// sum adds the numbers of a list. The sum of an empty list is the int 0.
func sum(m *meter, args []ref.Val) ref.Val {
	l, ok := args[0].(traits.Lister)
	if !ok {
		return noOverload("sum")
	}

	var total ref.Val = types.IntZero
	for it := l.Iterator(); it.HasNext() == types.True; {
		m.charge(1)
		v := it.Next()
		if _, ok := double(v); !ok {
			return types.NewErr("sum: a member of the list is not a number")
		}

		total = add(m, total, v)
	}

	return total
}

// round rounds the decimal digits that the number prints as, halves away from zero:
// 1.005 to two digits is 1.01, although the double of 1.005 is below 1.005.
func round(m *meter, args []ref.Val) ref.Val {
	value := args[0]
	x, ok := double(value)
	if !ok {
		return types.NewErr("round: not a number")
	}

	d, ok := double(args[1])
	if !ok || d < 0 || d > 15 || d != types.Double(int(d)) {
		return types.NewErr("round: digits must be a whole number from 0 to 15")
	}

	// An int has no digits after the point.
	if _, isDouble := value.(types.Double); !isDouble {
		return value
	}

	f := float64(x)
	if f == math.Trunc(f) || math.IsNaN(f) {
		return x
	}

	m.charge(8)

	// A tiny number has hundreds of digits, all of them behind the 15th.
	if math.Abs(f) < 1e-20 {
		return types.Double(math.Copysign(0, f))
	}

	r, _ := new(big.Rat).SetString(strconv.FormatFloat(f, 'e', -1, 64))
	f, err := strconv.ParseFloat(r.FloatString(int(d)), 64)
	if err != nil {
		return types.WrapErr(fmt.Errorf("round: %w", err))
	}

	return types.Double(f)
}

func whole(f func(float64) float64) func(*meter, []ref.Val) ref.Val {
	return func(_ *meter, args []ref.Val) ref.Val {
		x, ok := double(args[0])
		if !ok {
			return types.NewErr("not a number")
		}
		return types.Double(f(float64(x)))
	}
}

func test(f func(float64) bool) func(*meter, []ref.Val) ref.Val {
	return func(_ *meter, args []ref.Val) ref.Val {
		x, ok := double(args[0])
		if !ok {
			return types.NewErr("not a number")
		}
		return types.Bool(f(float64(x)))
	}
}

// toText writes 1250000.5 as 1250000.5; CEL would write 1.2500005e+06.
func toText(m *meter, args []ref.Val) ref.Val {
	if d, ok := args[0].(types.Double); ok && math.Abs(float64(d)) < 1e21 {
		return types.String(strconv.FormatFloat(float64(d), 'f', -1, 64))
	}

	m.charge(text(args[0]))
	return args[0].ConvertToType(types.StringType)
}

// replace computes the size of the result before replacing: s.replace("", s) of one
// megabyte is a terabyte.
func replace(m *meter, args []ref.Val) ref.Val {
	s, okS := args[0].(types.String)
	old, okOld := args[1].(types.String)
	with, okWith := args[2].(types.String)
	n := -1
	if len(args) == 4 {
		limit, ok := args[3].(types.Int)
		if !ok {
			return noOverload("replace")
		}
		if limit >= 0 && limit < maxText {
			n = int(limit)
		}
	}

	if !okS || !okOld || !okWith {
		return noOverload("replace")
	}

	m.charge(2*text(s) + text(old) + text(with))
	times := strings.Count(string(s), string(old))
	if n >= 0 {
		times = min(times, n)
	}

	// The arguments are bounded, so the product does not overflow.
	size := len(s) + times*(len(with)-len(old))
	if size > maxText {
		return errTooLong
	}

	m.charge(times/2 + size/bytesPerUnit)
	return types.String(strings.Replace(string(s), string(old), string(with), n))
}

func join(m *meter, args []ref.Val) ref.Val {
	l, ok := args[0].(traits.Lister)
	if !ok {
		return noOverload("join")
	}

	var separator types.String
	if len(args) == 2 {
		if separator, ok = args[1].(types.String); !ok {
			return noOverload("join")
		}
	}

	var b strings.Builder
	for it, first := l.Iterator(), true; it.HasNext() == types.True; first = false {
		s, ok := it.Next().(types.String)
		if !ok {
			return types.NewErr("join: a member of the list is not a string")
		}
		if m.charge(1 + text(s) + text(separator)); !first {
			b.WriteString(string(separator))
		}
		if b.WriteString(string(s)); b.Len() > maxText {
			return errTooLong
		}
	}

	return types.String(b.String())
}

func split(m *meter, args []ref.Val) ref.Val {
	s, okS := args[0].(types.String)
	separator, okSeparator := args[1].(types.String)
	n := types.Int(-1)
	if len(args) == 3 {
		var ok bool
		if n, ok = args[2].(types.Int); !ok {
			return noOverload("split")
		}

		// The limit of strings.SplitN is an int of the platform.
		n = min(max(n, -1), maxText)
	}

	if !okS || !okSeparator {
		return noOverload("split")
	}

	m.charge(text(s) + text(separator))

	// Count the parts first: the price of the result depends on their number.
	parts := strings.Count(string(s), string(separator)) + 1
	if n >= 0 {
		parts = min(parts, int(n))
	}

	m.charge(text(s) + parts)
	return types.NewStringList(types.DefaultTypeAdapter, strings.SplitN(string(s), string(separator), int(n)))
}

// indexOf takes and returns positions in characters, as CEL does, but searches bytes:
// CEL's own search takes quadratic time.
func indexOf(m *meter, args []ref.Val) ref.Val {
	s, sub, offset, given, ok := search(args)
	if !ok {
		return noOverload("indexOf")
	}

	m.charge(2*text(args[0]) + text(args[1]))

	switch {
	case given && offset < 0:
		return types.NewErr("index out of range: %d", offset)
	case sub == "":
		return min(offset, types.Int(utf8.RuneCountInString(s)))
	}

	from := byteOf(s, offset)
	at := strings.Index(s[from:], sub)
	if from == len(s) || at < 0 {
		return types.IntNegOne
	}

	return types.Int(utf8.RuneCountInString(s[:from+at]))
}

func lastIndexOf(m *meter, args []ref.Val) ref.Val {
	s, sub, offset, given, ok := search(args)
	if !ok {
		return noOverload("lastIndexOf")
	}

	m.charge(3*text(args[0]) + text(args[1]))
	runes := types.Int(utf8.RuneCountInString(s))

	// Without an offset the search begins at the end.
	if !given {
		offset = runes
	}

	switch {
	case offset < 0:
		return types.NewErr("index out of range: %d", offset)
	case sub == "":
		return min(offset, runes)
	case given && offset >= runes:
		return types.IntNegOne
	}

	// The last match may begin at offset, so the searched text ends one match later.
	until := min(byteOf(s, offset)+len(sub), len(s))
	at := strings.LastIndex(s[:until], sub)
	if at < 0 {
		return types.IntNegOne
	}

	return types.Int(utf8.RuneCountInString(s[:at]))
}

func search(args []ref.Val) (s, sub string, offset types.Int, given, ok bool) {
	text, okText := args[0].(types.String)
	part, okPart := args[1].(types.String)
	if given = len(args) == 3; given {
		if offset, ok = args[2].(types.Int); !ok {
			return "", "", 0, given, false
		}
	}

	return string(text), string(part), offset, given, okText && okPart
}

// byteOf returns the byte position of the n-th character, or len(s) behind the end.
func byteOf(s string, n types.Int) int {
	if n >= types.Int(len(s)) {
		return len(s)
	}

	for at := range s {
		if n == 0 {
			return at
		}
		n--
	}

	return len(s)
}

// equal compares deeply, and charges each pair of compared values.
func equal(m *meter, a, b ref.Val) bool {
	m.charge(1)

	switch x := a.(type) {
	case traits.Lister:
		y, ok := b.(traits.Lister)
		if !ok || length(x) != length(y) {
			return false
		}

		other := y.Iterator()
		for it := x.Iterator(); it.HasNext() == types.True; {
			if !equal(m, it.Next(), other.Next()) {
				return false
			}
		}

		return true
	case traits.Mapper:
		y, ok := b.(traits.Mapper)
		if !ok || length(x) != length(y) {
			return false
		}

		m.charge(length(x))

		for it := x.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			m.charge(1 + 2*text(key))
			theirs, found := y.Find(key)
			if !found {
				return false
			}

			if mine, _ := x.Find(key); !equal(m, mine, theirs) {
				return false
			}
		}

		return true
	case types.String, types.Bytes:
		m.charge(min(text(a), text(b)))
	}

	return types.Equal(a, b) == types.True
}

func contains(m *meter, args []ref.Val) ref.Val {
	switch l := args[1].(type) {
	case traits.Lister:
		for it := l.Iterator(); it.HasNext() == types.True; {
			if equal(m, args[0], it.Next()) {
				return types.True
			}
		}

		return types.False
	case traits.Mapper:
		m.charge(1 + text(args[0]))
		v, found := l.Find(args[0])
		if types.IsError(v) {
			return v
		}

		return types.Bool(found)
	}

	return noOverload(operators.In)
}

// loopRange returns the collection that a loop iterates over. CEL lists the keys of a
// map before the first iteration, so the keys are charged here.
func loopRange(m *meter, args []ref.Val) ref.Val {
	if l, ok := args[0].(traits.Mapper); ok {
		m.charge(length(l))
	}
	return args[0]
}

// index is a[b] for a b that is not a literal. A string key is hashed, so its whole
// length is charged.
func index(m *meter, args []ref.Val) ref.Val {
	m.charge(1 + text(args[1]))

	switch of := args[0].(type) {
	case traits.Mapper:
		v, found := of.Find(args[1])
		if found || v != nil && types.IsError(v) {
			return v
		}
		return types.NewErr("no such key")
	case traits.Lister:
		i, err := types.IndexOrError(args[1])
		if err != nil {
			return types.WrapErr(err)
		}

		if i < 0 || i >= length(of) {
			return types.NewErr("index out of bounds: %d", i)
		}

		return of.Get(types.Int(i))
	}

	return noOverload(operators.Index)
}

// matcher implements matches() with a pattern of bounded size; the match is charged
// before it begins. CEL's own limit on the size of patterns compiles the pattern without
// simplifying first, which panics at every {n}. A constant pattern is compiled once, with
// the expression, and a bad constant pattern is an error of Compile.
func matcher(args []interpreter.InterpretableV2) (func(*meter, []ref.Val) ref.Val, error) {
	var known *pattern.Pattern
	if constant, ok := args[1].(interpreter.InterpretableConst); ok {
		if source, ok := constant.Value().(types.String); ok {
			var err error
			if known, err = pattern.Compile(string(source)); err != nil {
				return nil, fmt.Errorf("matches: %w", err)
			}
		}
	}

	return func(m *meter, values []ref.Val) ref.Val {
		s, okS := values[0].(types.String)
		source, okSource := values[1].(types.String)
		if !okS || !okSource {
			return noOverload(overloads.Matches)
		}

		p := known
		if p == nil {
			var err error
			if p, err = m.compiled(string(source)); err != nil {
				return types.WrapErr(fmt.Errorf("matches: %w", err))
			}
		}

		m.charge(1 + p.Cost(len(s))/visitsPerUnit)
		return types.Bool(p.MatchString(string(s)))
	}, nil
}

// compiled returns a pattern whose source is known only at run time. The meter keeps the
// last pattern: a loop usually uses the same pattern in each iteration.
func (m *meter) compiled(source string) (*pattern.Pattern, error) {
	m.charge(1 + min(len(source), pattern.MaxSource)/bytesPerUnit)

	// m is nil while CEL evaluates constants at compile time.
	if m != nil && m.pattern != nil && m.pattern.String() == source {
		return m.pattern, nil
	}

	m.charge(patternByte * min(len(source), pattern.MaxSource))
	p, err := pattern.Compile(source)
	if err != nil {
		return nil, err
	}

	m.charge(4 * p.Size())
	if m != nil {
		m.pattern = p
	}

	return p, nil
}
