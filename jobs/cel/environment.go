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

// The limits of an expression's text. meter.go has the limits of the cost.
const (
	maxSource     = 64 << 10 // bytes
	maxNodes      = 4096     // of the syntax tree
	interruptStep = 64       // loop iterations between CEL's own checks of the context
)

// environment returns a CEL environment with the given variables, and with arithmetic
// that mixes int and double (see the package documentation).
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

// mixed is the prefix of the overloads for mixed arithmetic. Only the checker reads
// these overloads, for their types; no call uses their names.
const mixed = "tes_"

var arithmetic = map[string]func(m *meter, a, b ref.Val) ref.Val{
	operators.Add:      add,
	operators.Subtract: subtract,
	operators.Multiply: multiply,
	operators.Divide:   divide,
	operators.Modulo:   modulo,
}

// add adds numbers and concatenates strings, bytes and lists. CEL's own a + a of lists is
// a view of both operands, so that fifty additions make a list of 2^50 members without
// memory. add copies the members, and the meter bounds the copies.
func add(m *meter, a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x + y
	}

	switch x := a.(type) {
	case traits.MutableLister:
		// The list that a loop accumulates. The loop is its only owner: append in place.
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
	// Also for doubles: JSON has no infinite numbers.
	if y == 0 {
		return types.NewErr("division by zero")
	}

	// An exact quotient of two ints stays an int.
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

// exact returns the result of an operation on two ints, or computes the operation in
// doubles if the ints overflowed.
func exact(result, a, b ref.Val, in func(x, y types.Double) types.Double) ref.Val {
	m, okM := a.(types.Int)
	n, okN := b.(types.Int)
	if okM && okN && types.IsError(result) {
		return in(types.Double(m), types.Double(n))
	}

	return result
}

// doubles converts a and b to double if at least one of them is a double, or if exactly
// one of them is a uint, a number too large for int.
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
