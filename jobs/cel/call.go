package cel

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// planner replaces the calls of a program by metered calls.
type planner struct {
	bound map[string]*functions.Overload // CEL's own functions, by overload and by name
}

func newPlanner(env *cel.Env) (*planner, error) {
	p := &planner{bound: map[string]*functions.Overload{}}
	for _, f := range env.Functions() {
		list, err := f.Bindings()
		if err != nil {
			return nil, err
		}

		for _, overload := range list {
			p.bound[overload.Operator] = overload
		}
	}

	return p, nil
}

// call is a metered function call: its price and its implementation.
type call struct {
	interpreter.InterpretableCall
	args  []interpreter.InterpretableV2
	price func(args []ref.Val) int // charged before do; nil if do charges the meter itself
	do    func(m *meter, args []ref.Val) ref.Val
}

// Function hides the function's name, because CEL replaces calls with known names: it
// would compile a constant pattern, or turn a list into a set, without the meter. Type
// conversions keep their names: CEL evaluates conversions of constants at compile time,
// and rejects bad constants then.
func (c *call) Function() string {
	if name := c.InterpretableCall.Function(); overloads.IsTypeConversionFunction(name) {
		return name
	}
	return "@metered"
}

// OverloadID implements interpreter.InterpretableCall.
func (c *call) OverloadID() string { return "" }

// Exec evaluates the arguments and the call. As in CEL, the first argument that is an
// error is the result.
func (c *call) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	values := make([]ref.Val, len(c.args))
	for i, arg := range c.args {
		if values[i] = arg.Exec(frame); types.IsUnknownOrError(values[i]) {
			return values[i]
		}
	}

	m := meterOf(frame)
	if c.price != nil {
		m.charge(c.price(values))
	}

	result := c.do(m, values)

	// No function may return more than 1 MiB of text: the next call would read the text
	// before its price is known.
	if tooLong(result) {
		result = errTooLong
	}

	return types.LabelErrNode(c.ID(), result)
}

// Eval implements interpreter.Interpretable.
func (c *call) Eval(vars interpreter.Activation) ref.Val { return c.Exec(interpreter.AsFrame(vars)) }

// step is one iteration of a loop. Exec charges all nodes of the loop's body.
type step struct {
	interpreter.InterpretableV2
	nodes int
}

func (s *step) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	meterOf(frame).charge(s.nodes)
	return s.InterpretableV2.Exec(frame)
}

// Eval implements interpreter.Interpretable.
func (s *step) Eval(vars interpreter.Activation) ref.Val { return s.Exec(interpreter.AsFrame(vars)) }

// decorate is called for each node of a program, leaves first. A function without an
// entry in the tables below is rejected: a function of a newer CEL has no price yet.
func (p *planner) decorate(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	c, ok := i.(interpreter.InterpretableCall)
	if !ok {
		return i, nil
	}

	// Already metered.
	if _, done := i.(*call); done {
		return i, nil
	}

	name, args := c.Function(), c.Args()
	metered := &call{InterpretableCall: c, args: args}

	switch {
	case name == stepFunction:
		nodes, _ := args[1].(interpreter.InterpretableConst).Value().(types.Int)
		return &step{InterpretableV2: args[0], nodes: int(nodes)}, nil
	case name == overloads.Matches:
		var err error
		metered.do, err = matcher(args)
		return metered, err
	case free[name]:
		return i, nil
	case arithmetic[name] != nil:
		return p.arithmetic(metered), nil
	case ownFunctions[name] != nil:
		metered.do = ownFunctions[name]
		return metered, nil
	case priced[name] != nil:
		metered.price, metered.do = priced[name], p.native(c)
		return metered, nil
	}

	return nil, fmt.Errorf("%s is not available", name)
}

// arithmetic returns CEL's own call for two numbers of one kind, and c with mixed arithmetic
// otherwise.
//
// The types of the checker may be wrong: [input.texts + [1]][0] is a list of numbers for the
// checker, and a list of texts at run time. For most operators that does not matter, because
// numbers cost no more than their node. A + of texts or lists writes a result, so its
// operands are examined at run time.
func (p *planner) arithmetic(c *call) interpreter.InterpretableV2 {
	name, overload := c.InterpretableCall.Function(), c.InterpretableCall.OverloadID()
	operator := arithmetic[name]

	switch {
	case overload == "", strings.HasPrefix(overload, mixed),
		overload == overloads.AddString, overload == overloads.AddBytes, overload == overloads.AddList:
		// The operands may be of different kinds, or the result may grow.
		c.do = func(m *meter, args []ref.Val) ref.Val { return operator(m, args[0], args[1]) }
		return c
	case name != operators.Add:
		return c.InterpretableCall
	}

	native := p.native(c.InterpretableCall)
	c.do = func(m *meter, args []ref.Val) ref.Val {
		switch args[0].(type) {
		case types.String, types.Bytes, traits.Lister:
			return operator(m, args[0], args[1])
		}
		return native(m, args)
	}

	return c
}

// native returns the implementation that CEL would call.
func (p *planner) native(c interpreter.InterpretableCall) func(*meter, []ref.Val) ref.Val {
	name, overload := c.Function(), c.OverloadID()

	// CEL registers some functions by overload and others by name.
	bound := p.bound[overload]
	if bound == nil {
		bound = p.bound[name]
	}

	return func(_ *meter, args []ref.Val) ref.Val {
		if bound != nil && (bound.OperandTrait == 0 || args[0].Type().HasTrait(bound.OperandTrait)) {
			switch {
			case len(args) == 1 && bound.Unary != nil:
				return bound.Unary(args[0])
			case len(args) == 2 && bound.Binary != nil:
				return bound.Binary(args[0], args[1])
			case bound.Function != nil:
				return bound.Function(args...)
			}
		}

		// Not registered: a method of the first argument's type.
		if args[0].Type().HasTrait(traits.ReceiverType) {
			return args[0].(traits.Receiver).Receive(name, overload, args[1:])
		}

		return noOverload(name)
	}
}

// free are the functions that cost no more than their node in the syntax tree.
var free = map[string]bool{
	"@not_strictly_false": true, operators.LogicalNot: true, operators.Negate: true, "type": true, "dyn": true,
	"math.abs": true, "math.sign": true, "math.sqrt": true, "math.bitAnd": true, "math.bitOr": true, "math.bitXor": true, "math.bitNot": true,
	"math.bitShiftLeft": true, "math.bitShiftRight": true,
}

// priced are CEL's own functions whose work is proportional to their arguments.
var priced = map[string]func(args []ref.Val) int{
	operators.Less: least, operators.LessEquals: least, operators.Greater: least, operators.GreaterEquals: least,
	"size": first(1), "charAt": first(4), "substring": first(4), "trim": first(2), "lowerAscii": first(2), "upperAscii": first(2),
	"reverse": first(4), "strings.quote": first(8), "startsWith": second, "endsWith": second, "contains": all,
	"bool": all, "bytes": all, "double": all, "duration": all, "int": all, "timestamp": all, "uint": all,
	"math.@min": members, "math.@max": members,
	"getFullYear": zoned, "getMonth": zoned, "getDayOfYear": zoned, "getDayOfMonth": zoned, "getDate": zoned, "getDayOfWeek": zoned,
	"getHours": zoned, "getMinutes": zoned, "getSeconds": zoned, "getMilliseconds": zoned,
}

func first(times int) func([]ref.Val) int {
	return func(args []ref.Val) int { return 1 + times*text(args[0]) }
}

func second(args []ref.Val) int { return 1 + text(args[1]) }

func least(args []ref.Val) int { return 1 + min(text(args[0]), text(args[1])) }

func all(args []ref.Val) int {
	total := 1
	for _, arg := range args {
		total += text(arg)
	}

	return total
}

func members(args []ref.Val) int {
	total := 0
	for _, arg := range args {
		total += length(arg)
	}

	return total
}

func zoned(args []ref.Val) int {
	if len(args) == 1 {
		return 1
	}
	return zoneCost + text(args[1])
}
