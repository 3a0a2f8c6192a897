package cel

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// What one expression may cost. CEL counts about one unit a step; half a million take
// some tenths of a second at worst, and price the lines of a 1 MiB order.
const (
	costLimit     = 500_000
	maxText       = 1 << 20 // bytes that one function may write at once
	maxNodes      = 4096    // of an expression's syntax tree
	visitsPerUnit = 50      // instructions of a pattern for one unit of cost
	interruptStep = 64      // loop turns between looks at the context
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
		cel.Function("sum", cel.Overload("sum_list", []*cel.Type{cel.ListType(cel.DynType)}, cel.DynType,
			cel.UnaryBinding(sum))),
		cel.Function("round", cel.Overload("round_number_int", []*cel.Type{cel.DynType, cel.DynType}, cel.DynType,
			cel.BinaryBinding(round))),
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

// mixed starts the names of the overloads that decorate takes over: the checker
// sees their types, nothing else is ever called under these names.
const mixed = "tes_"

var programOptions = []cel.ProgramOption{
	cel.EvalOptions(cel.OptOptimize),
	cel.CustomDecoratorV2(decorate),
	cel.CostTracking(costs{}),
	cel.CostLimit(costLimit),
	cel.InterruptCheckFrequency(interruptStep),
}

// A call is a function of CEL's that is done our way.
type call struct {
	interpreter.InterpretableCall
	args []interpreter.InterpretableV2
	do   func(args []ref.Val) ref.Val
}

// Exec works as CEL's own calls do: the first error among the arguments wins.
func (c *call) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	values := make([]ref.Val, len(c.args))
	for i, arg := range c.args {
		if values[i] = arg.Exec(frame); types.IsUnknownOrError(values[i]) {
			return values[i]
		}
	}
	return types.LabelErrNode(c.ID(), c.do(values))
}

func (c *call) Eval(vars interpreter.Activation) ref.Val { return c.Exec(interpreter.AsFrame(vars)) }

// decorate replaces the arithmetic whose types are known only at run time, the
// functions that would refuse half of all JSON numbers, and those that can write
// more than they are given: s.replace("", s) of a megabyte is a terabyte, and
// costs are counted only after the call.
func decorate(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	c, ok := i.(interpreter.InterpretableCall)
	if !ok {
		return i, nil
	}
	do := ours[c.Function()]
	if c.Function() == overloads.Matches {
		var err error
		if do, err = matcher(c.Args()); err != nil {
			return nil, err
		}
	}
	if operator := arithmetic[c.Function()]; operator != nil && (c.OverloadID() == "" || strings.HasPrefix(c.OverloadID(), mixed)) {
		do = func(args []ref.Val) ref.Val { return operator(args[0], args[1]) }
	}
	if do == nil {
		return i, nil
	}
	return &call{InterpretableCall: c, args: c.Args(), do: do}, nil
}

var arithmetic = map[string]func(a, b ref.Val) ref.Val{
	operators.Add:      add,
	operators.Subtract: subtract,
	operators.Multiply: multiply,
	operators.Divide:   divide,
	operators.Modulo:   modulo,
}

func add(a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x + y
	}
	if x, ok := a.(traits.Adder); ok {
		return exact(x.Add(b), a, b, func(x, y types.Double) types.Double { return x + y })
	}
	return noOverload(operators.Add)
}

func subtract(a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x - y
	}
	if x, ok := a.(traits.Subtractor); ok {
		return exact(x.Subtract(b), a, b, func(x, y types.Double) types.Double { return x - y })
	}
	return noOverload(operators.Subtract)
}

func multiply(a, b ref.Val) ref.Val {
	if x, y, ok := doubles(a, b); ok {
		return x * y
	}
	if x, ok := a.(traits.Multiplier); ok {
		return exact(x.Multiply(b), a, b, func(x, y types.Double) types.Double { return x * y })
	}
	return noOverload(operators.Multiply)
}

func divide(a, b ref.Val) ref.Val {
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

func modulo(a, b ref.Val) ref.Val {
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

// doubles is for two numbers of which at least one is a double.
func doubles(a, b ref.Val) (x, y types.Double, ok bool) {
	_, okA := a.(types.Double)
	_, okB := b.(types.Double)
	if !okA && !okB {
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

// sum adds the numbers of a list; of none it is 0.
func sum(list ref.Val) ref.Val {
	l, ok := list.(traits.Lister)
	if !ok {
		return noOverload("sum")
	}
	var total ref.Val = types.IntZero
	for it := l.Iterator(); it.HasNext() == types.True; {
		v := it.Next()
		if _, ok := double(v); !ok {
			return types.NewErr("sum: a member of the list is no number")
		}
		total = add(total, v)
	}
	return total
}

// round rounds the decimal digits that a number prints as, halves away from zero,
// as people do: 1.005 to two digits is 1.01, although its double lies below it.
func round(value, digits ref.Val) ref.Val {
	x, ok := double(value)
	if !ok {
		return types.NewErr("round: not a number")
	}
	d, ok := double(digits)
	if !ok || d < 0 || d > 15 || d != types.Double(int(d)) {
		return types.NewErr("round: digits must be a whole number from 0 to 15")
	}
	if _, whole := value.(types.Double); !whole {
		return value
	}
	f := float64(x)
	if f == math.Trunc(f) || math.IsNaN(f) {
		return x
	}
	r, _ := new(big.Rat).SetString(strconv.FormatFloat(f, 'e', -1, 64))
	f, err := strconv.ParseFloat(r.FloatString(int(d)), 64)
	if err != nil {
		return types.WrapErr(fmt.Errorf("round: %w", err))
	}
	return types.Double(f)
}

// ours are functions by name, whatever their overload.
var ours = map[string]func(args []ref.Val) ref.Val{
	"math.ceil":     whole(math.Ceil),
	"math.floor":    whole(math.Floor),
	"math.round":    whole(math.Round),
	"math.trunc":    whole(math.Trunc),
	"math.isNaN":    test(math.IsNaN),
	"math.isInf":    test(func(f float64) bool { return math.IsInf(f, 0) }),
	"math.isFinite": test(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) }),
	"string":        text,
	"replace":       replace,
	"join":          join,
}

func whole(f func(float64) float64) func([]ref.Val) ref.Val {
	return func(args []ref.Val) ref.Val {
		x, ok := double(args[0])
		if !ok {
			return types.NewErr("not a number")
		}
		return types.Double(f(float64(x)))
	}
}

func test(f func(float64) bool) func([]ref.Val) ref.Val {
	return func(args []ref.Val) ref.Val {
		x, ok := double(args[0])
		if !ok {
			return types.NewErr("not a number")
		}
		return types.Bool(f(float64(x)))
	}
}

// text writes 1250000.5 as such; CEL would write 1.2500005e+06.
func text(args []ref.Val) ref.Val {
	if d, ok := args[0].(types.Double); ok && math.Abs(float64(d)) < 1e21 {
		return types.String(strconv.FormatFloat(float64(d), 'f', -1, 64))
	}
	return args[0].ConvertToType(types.StringType)
}

func replace(args []ref.Val) ref.Val {
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
	times := strings.Count(string(s), string(old))
	if n >= 0 {
		times = min(times, n)
	}
	if len(s)+times*(len(with)-len(old)) > maxText {
		return errTooLong
	}
	return types.String(strings.Replace(string(s), string(old), string(with), n))
}

func join(args []ref.Val) ref.Val {
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
			return types.NewErr("join: a member of the list is no string")
		}
		if !first {
			b.WriteString(string(separator))
		}
		if b.WriteString(string(s)); b.Len() > maxText {
			return errTooLong
		}
	}
	return types.String(b.String())
}

// matcher is matches() with a pattern of bounded size. CEL's own limit on the size
// compiles the pattern without simplifying it, which panics at every {n}. A pattern
// that stands in the expression is compiled once, and refused with the expression.
func matcher(args []interpreter.InterpretableV2) (func([]ref.Val) ref.Val, error) {
	var known *pattern.Pattern
	if constant, ok := args[1].(interpreter.InterpretableConst); ok {
		if source, ok := constant.Value().(types.String); ok {
			var err error
			if known, err = pattern.Compile(string(source)); err != nil {
				return nil, fmt.Errorf("matches: %w", err)
			}
		}
	}
	return func(values []ref.Val) ref.Val {
		s, okS := values[0].(types.String)
		source, okSource := values[1].(types.String)
		if !okS || !okSource {
			return noOverload(overloads.Matches)
		}
		p := known
		if p == nil {
			var err error
			if p, err = pattern.Compile(string(source)); err != nil {
				return types.WrapErr(fmt.Errorf("matches: %w", err))
			}
		}
		if p.Cost(len(s))/visitsPerUnit > costLimit {
			panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: ErrCost.Error()})
		}
		return types.Bool(p.MatchString(string(s)))
	}, nil
}

var errTooLong = types.NewErr("text longer than 1 MiB")

// costs prices what CEL prices at one unit because the types are known only at
// run time (its table goes by overload), and our own functions.
type costs struct{}

// CallCost implements interpreter.ActualCostEstimator; nil leaves it to CEL.
func (costs) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	cost := uint64(1)
	switch {
	case function == operators.Equals || function == operators.NotEquals || function == operators.In || function == operators.OldIn:
		// The smaller side ends a comparison; for "in" every member is compared.
		smaller := size(args[0])
		if function == operators.In || function == operators.OldIn {
			if _, ok := args[1].(traits.Mapper); !ok {
				smaller = size(args[1])
			}
		} else {
			smaller = min(smaller, size(args[1]))
		}
		cost += smaller
	case function == "sum":
		if l, ok := args[0].(traits.Sizer); ok {
			cost += uint64(max(0, l.Size().(types.Int)))
		}
	case function == operators.Index || function == operators.OptIndex:
		return nil
	case overload == "" || strings.HasPrefix(overload, mixed):
		for _, arg := range args {
			cost += textSize(arg)
		}
		cost += textSize(result)
	default:
		return nil
	}
	return &cost
}

// textSize prices the bytes of a string as CEL does: ten for one unit.
func textSize(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(len(v)) / 10
	case types.Bytes:
		return uint64(len(v)) / 10
	default:
		return 0
	}
}

// size counts a value with all that is inside it, up to the whole limit.
func size(v ref.Val) uint64 {
	left := costLimit
	var count func(v ref.Val)
	count = func(v ref.Val) {
		left--
		switch v := v.(type) {
		case types.String, types.Bytes:
			left -= int(textSize(v))
		case traits.Lister:
			for it := v.Iterator(); left > 0 && it.HasNext() == types.True; {
				count(it.Next())
			}
		case traits.Mapper:
			for it := v.Iterator(); left > 0 && it.HasNext() == types.True; {
				if value, found := v.Find(it.Next()); found {
					count(value)
				}
			}
		}
	}
	count(v)
	return uint64(costLimit - max(left, 0))
}
