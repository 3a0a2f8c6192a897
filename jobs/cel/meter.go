package cel

import (
	"context"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// What evaluations may cost. One unit is a node of the syntax tree that is worked out,
// a member of a list that is looked at, or ten bytes of text that are read or written:
// some 50 to 200 ns, and at most some 100 bytes of memory. Two million price the
// arithmetic of the 20,000 lines that a 1 MiB order has, some times over.
const (
	costLimit  = 2_000_000     // of one expression
	listLimit  = 2 * costLimit // of all expressions of one output
	lookEvery  = 1024          // units between two looks at the context
	bytesAUnit = 10
	maxText    = 1 << 20 // bytes of one text

	zoneCost      = 500 // the rules of a time zone are read from a file
	visitsPerUnit = 8   // instructions of a pattern
	patternByte   = 50  // units for each byte of a pattern that must be compiled
)

// Budget is what several evaluations may cost together. Not safe for concurrent use.
type Budget struct{ left int }

// NewBudget is enough for all expressions of one output.
func NewBudget() *Budget { return &Budget{left: listLimit} }

// meter counts what one evaluation costs. Work is paid before it is done; when the
// budget or the context has ended, the evaluation does. A nil *meter, at the time of
// compilation, counts nothing.
type meter struct {
	ctx  context.Context
	left int
	look int // at ctx, when left is below

	pattern *pattern.Pattern // the last one that was compiled at run time
}

func (m *meter) charge(units int) {
	if m == nil {
		return
	}
	if m.left -= units; m.left < 0 {
		m.left = 0
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: ErrCost.Error()})
	}
	if m.left < m.look {
		m.look = m.left - lookEvery
		if err := m.ctx.Err(); err != nil {
			panic(interpreter.EvalCancelledError{Cause: interpreter.ContextCancelled, Message: err.Error()})
		}
	}
}

// meterName is no identifier, so that no expression can name it.
const meterName = "@meter"

// activation is the variables of one evaluation, and its meter.
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

// text prices the bytes of a string.
func text(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v) / bytesAUnit
	case types.Bytes:
		return len(v) / bytesAUnit
	}
	return 0
}

// length is the number of a list's or a map's members, and 1 for anything else.
func length(v ref.Val) int {
	switch v.(type) {
	case traits.Lister, traits.Mapper:
		n, _ := v.(traits.Sizer).Size().(types.Int)
		return int(n)
	}
	return 1
}
