package cel

import (
	"context"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// The limits of an evaluation. One unit pays for one node of the syntax tree that is
// evaluated, one member of a list that is visited, or ten bytes of text that are read or
// written: about 50 to 200 ns, and at most about 100 bytes of memory. Two million units
// price the arithmetic of an order of 1 MiB (20,000 lines) several times over.
const (
	costLimit        = 2_000_000     // units of one expression
	listLimit        = 2 * costLimit // units of all expressions of one output
	ctxCheckInterval = 1024          // units between two checks of the context
	bytesPerUnit     = 10
	maxText          = 1 << 20 // bytes of one text

	zoneCost      = 500 // units to read the rules of a time zone from a file
	visitsPerUnit = 8   // instructions of a pattern
	patternByte   = 50  // units to compile one byte of a pattern
)

// Budget is the number of units that several evaluations may cost together. Not safe for
// concurrent use.
type Budget struct{ left int }

// NewBudget returns the budget for all expressions of one output.
func NewBudget() *Budget { return &Budget{left: listLimit} }

// meter counts the units of one evaluation. Work is charged before the work is done; when
// the budget is used up or the context has ended, charge stops the evaluation. A nil
// *meter charges nothing: CEL evaluates constants at compile time without a meter.
type meter struct {
	ctx       context.Context
	left      int
	nextCheck int // of ctx: when left is below

	pattern *pattern.Pattern // the last pattern that was compiled at run time
}

func (m *meter) charge(units int) {
	if m == nil {
		return
	}

	if m.left -= units; m.left < 0 {
		// A recovered panic must not leave a negative remainder in the Budget.
		m.left = 0
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: ErrCost.Error()})
	}

	if m.left < m.nextCheck {
		m.nextCheck = m.left - ctxCheckInterval
		if err := m.ctx.Err(); err != nil {
			panic(interpreter.EvalCancelledError{Cause: interpreter.ContextCancelled, Message: err.Error()})
		}
	}
}

// meterName is not an identifier of the language, so no expression can refer to the meter.
const meterName = "@meter"

// activation holds the variables of one evaluation, and the meter.
type activation struct {
	vars  map[string]any
	meter *meter
}

// ResolveName implements interpreter.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	if name == meterName {
		return a.meter, true
	}

	v, ok := a.vars[name]
	return v, ok
}

// Parent implements interpreter.Activation.
func (a *activation) Parent() interpreter.Activation { return nil }

func meterOf(frame *interpreter.ExecutionFrame) *meter {
	v, _ := frame.ResolveName(meterName)
	m, _ := v.(*meter)
	return m
}

// text is the price of reading a string.
func text(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v) / bytesPerUnit
	case types.Bytes:
		return len(v) / bytesPerUnit
	}

	return 0
}

// length returns the number of members of a list or a map, and 1 for other values.
func length(v ref.Val) int {
	switch v.(type) {
	case traits.Lister, traits.Mapper:
		n, _ := v.(traits.Sizer).Size().(types.Int)
		return int(n)
	}

	return 1
}
