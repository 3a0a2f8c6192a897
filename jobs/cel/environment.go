package cel

import (
	"math"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

// The limits of an expression's text; what working it out may cost stands in meter.go.
const (
	maxSource     = 64 << 10 // bytes
	maxNodes      = 4096     // of the syntax tree
	interruptStep = 64       // loop turns between CEL's own looks at the context
)

// environment is CEL with the names that an expression knows. Numbers are the one
// departure. JSON has a single kind of number and CEL three that do not mix, so
// that 2 * 10.99 would be an error, and whether an order adds up would depend on
// whether somebody wrote 10 or 10.5. Here whole numbers arrive as int, others as
// double, and arithmetic mixes them: int with int stays exact, and becomes double
// where it would overflow or where a division does not come out even. Only what
// the checker knows to be two ints keeps CEL's own rules: size(a) / 2 is whole.
func environment(names []string) (*cel.Env, error) {
	options := []cel.EnvOption{
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserRecursionLimit(64),
		cel.ExpressionNodeLimit(maxNodes),
		ext.Strings(),
		ext.Math(),
		cel.Function("sum", cel.Overload("sum_list", []*cel.Type{cel.ListType(cel.DynType)}, cel.DynType)),
		cel.Function("round", cel.Overload("round_number_int", []*cel.Type{cel.DynType, cel.DynType}, cel.DynType)),
	}
	for _, name := range names {
		options = append(options, cel.Variable(name, cel.DynType))
	}
	for operator := range arithmetic {
		options = append(options, cel.Function(operator,
			cel.Overload(mixed+operator+"_int_double", []*cel.Type{cel.IntType, cel.DoubleType}, cel.DoubleType),
			cel.Overload(mixed+operator+"_double_int", []*cel.Type{cel.DoubleType, cel.IntType}, cel.DoubleType)))
	}
	return cel.NewEnv(options...)
}

// mixed starts the names of the overloads that are ours alone: the checker sees their
// types, nothing else is ever called under these names.
const mixed = "tes_"

var arithmetic = map[string]func(m *meter, a, b ref.Val) ref.Val{
	operators.Add:      add,
	operators.Subtract: subtract,
	operators.Multiply: multiply,
	operators.Divide:   divide,
	operators.Modulo:   modulo,
}

// add joins texts and lists too. CEL's a + a of lists is a view of both, and fifty of
// those a list of 2^50 members in no memory at all; here it is a list.
func add(m *meter, a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x + y
	}
	switch x := a.(type) {
	case traits.MutableLister: // what a loop builds up, and owns
		m.charge(length(b))
		return x.Add(b)
	case traits.Lister:
		if y, ok := b.(traits.Lister); ok {
			return concatenated(m, x, y)
		}
	case types.String, types.Bytes:
		if tooLong(a, b) {
			return errTooLong
		}
		m.charge(text(a) + text(b))
	}
	if x, ok := a.(traits.Adder); ok {
		return exact(x.Add(b), a, b, func(x, y types.Double) types.Double { return x + y })
	}
	return noOverload(operators.Add)
}

func concatenated(m *meter, a, b traits.Lister) ref.Val {
	switch {
	case length(a) == 0:
		return b
	case length(b) == 0:
		return a
	}
	m.charge(length(a) + length(b))
	all := make([]ref.Val, 0, length(a)+length(b))
	for _, l := range []traits.Lister{a, b} {
		for it := l.Iterator(); it.HasNext() == types.True; {
			all = append(all, it.Next())
		}
	}
	return types.NewRefValList(types.DefaultTypeAdapter, all)
}

func tooLong(parts ...ref.Val) bool {
	total := 0
	for _, part := range parts {
		switch part := part.(type) {
		case types.String:
			total += len(part)
		case types.Bytes:
			total += len(part)
		}
	}
	return total > maxText
}

func subtract(_ *meter, a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x - y
	}
	if x, ok := a.(traits.Subtractor); ok {
		return exact(x.Subtract(b), a, b, func(x, y types.Double) types.Double { return x - y })
	}
	return noOverload(operators.Subtract)
}

func multiply(_ *meter, a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x * y
	}
	if x, ok := a.(traits.Multiplier); ok {
		return exact(x.Multiply(b), a, b, func(x, y types.Double) types.Double { return x * y })
	}
	return noOverload(operators.Multiply)
}

func divide(_ *meter, a, b ref.Val) ref.Val {
	x, okX := double(a)
	y, okY := double(b)
	if !okX || !okY {
		return noOverload(operators.Divide)
	}
	if y == 0 {
		return types.NewErr("division by zero")
	}
	if m, ok := a.(types.Int); ok {
		if n, ok := b.(types.Int); ok && m%n == 0 {
			return m.Divide(n)
		}
	}
	return x / y
}

func modulo(_ *meter, a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		if y == 0 {
			return types.NewErr("modulus by zero")
		}
		return types.Double(math.Mod(float64(x), float64(y)))
	}
	if x, ok := a.(traits.Modder); ok {
		return x.Modulo(b)
	}
	return noOverload(operators.Modulo)
}

// exact keeps the result of two ints, or works it out in doubles if it overflowed.
func exact(result, a, b ref.Val, in func(x, y types.Double) types.Double) ref.Val {
	m, okM := a.(types.Int)
	n, okN := b.(types.Int)
	if okM && okN && types.IsError(result) {
		return in(types.Double(m), types.Double(n))
	}
	return result
}

// doubles is for two numbers of which at least one is a double, or one alone is larger than
// an int.
func doubles(a, b ref.Val) (x, y types.Double, ok bool) {
	_, okA := a.(types.Double)
	_, okB := b.(types.Double)
	_, largeA := a.(types.Uint)
	_, largeB := b.(types.Uint)
	if !okA && !okB && largeA == largeB {
		return 0, 0, false
	}
	x, okA = double(a)
	y, okB = double(b)
	return x, y, okA && okB
}

func double(v ref.Val) (types.Double, bool) {
	switch v := v.(type) {
	case types.Double:
		return v, true
	case types.Int:
		return types.Double(v), true
	case types.Uint:
		return types.Double(v), true
	default:
		return 0, false
	}
}

func noOverload(function string) ref.Val { return types.NewErr("no such overload: %s", function) }
