// Package cel is the language of expressions: Google's CEL with JSON's numbers, a
// limit on what an expression may cost, and JSON in and out.
package cel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// ErrCost says that an expression costs more than it may, and what to do about that.
var ErrCost = errors.New("the expression costs more than it may: make the list smaller, or do less with each member")

// So many programs are kept compiled, and so many bytes of their sources: a program
// takes some hundred times its source. A definition has a handful.
const (
	maxPrograms = 4096
	maxSources  = 2 << 20
)

// Env knows the names that its expressions may use, and keeps what it compiled. Make
// it with Names. Safe for concurrent use.
type Env struct {
	env func() (*cel.Env, error)

	mu       sync.RWMutex
	programs map[string]*Program // guarded by mu
	sources  int                 // bytes of the keys of programs; guarded by mu
}

// Names makes an Env with these variables, of any type.
func Names(names ...string) *Env {
	return &Env{
		env:      sync.OnceValues(func() (*cel.Env, error) { return environment(names) }),
		programs: map[string]*Program{},
	}
}

// Program is an expression, compiled. Safe for concurrent use.
type Program struct {
	run    cel.Program
	parsed *cel.Ast
	nodes  int // that are worked out once, whatever the values
}

// Value is what an expression came to; it may be a variable of the next one.
type Value = ref.Val

// Program compiles source or finds it compiled. When the memory is full a random
// entry goes: cheaper than to know the oldest, and it is never far from full.
func (e *Env) Program(source string) (*Program, error) {
	e.mu.RLock()
	p := e.programs[source]
	e.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	p, err := e.Compile(source)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.programs[source] != nil {
		return e.programs[source], nil // somebody was faster
	}
	e.sources += len(source)
	for other := range e.programs {
		if len(e.programs) < maxPrograms && e.sources <= maxSources {
			break
		}
		delete(e.programs, other)
		e.sources -= len(other)
	}
	e.programs[source] = p
	return p, nil
}

var compiling sync.Mutex

// Compile parses, checks and plans; only the plan finds a constant that is no
// pattern or no timestamp. format is left out: its result can be a thousand times
// its arguments, and string() with + does the same in steps that are paid.
//
// A panic of the library is an error of this expression: it must end neither a
// request nor a consumer of the bus.
func (e *Env) Compile(source string) (p *Program, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, fmt.Errorf("the expression cannot be compiled: %v", r)
		}
	}()
	if len(source) > maxSource {
		return nil, fmt.Errorf("the expression has %d bytes, the limit is %d", len(source), maxSource)
	}
	// All parsers share a cache in antlr that does not guard itself.
	compiling.Lock()
	defer compiling.Unlock()
	env, err := e.env()
	if err != nil {
		return nil, fmt.Errorf("CEL environment: %w", err)
	}
	parsed, issues := env.Compile(source)
	if err := issues.Err(); err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n") // the rest draws the place
		return nil, errors.New(strings.TrimPrefix(first, "ERROR: <input>:"))
	}
	if err := available(parsed); err != nil {
		return nil, err
	}
	calls, err := newPlanner(env)
	if err != nil {
		return nil, fmt.Errorf("CEL environment: %w", err)
	}
	p = &Program{parsed: parsed, nodes: weigh(parsed.NativeRep())}
	p.run, err = env.Program(parsed, cel.EvalOptions(cel.OptOptimize), cel.CustomDecoratorV2(calls.decorate), cel.InterruptCheckFrequency(interruptStep))
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return p, nil
}

// available refuses what has no bound: format() writes a thousand times its
// arguments, and a message of protobuf is none of ours.
func available(parsed *cel.Ast) (err error) {
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch {
		case e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "format":
			err = errors.New("format is not available, use string() and +")
		case e.Kind() == ast.StructKind:
			err = errors.New("messages are not available, use a map")
		}
	}))
	return err
}

// Members lists the names x of each of.x in the expression.
func (p *Program) Members(of string) (names []string) {
	ast.PreOrderVisit(p.parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.SelectKind {
			return
		}
		s := e.AsSelect()
		if o := s.Operand(); o.Kind() == ast.IdentKind && o.AsIdent() == of && !slices.Contains(names, s.FieldName()) {
			names = append(names, s.FieldName())
		}
	}))
	return names
}

// Eval works the expression out. An error is ctx's if that has ended, ErrCost, or
// says what is wrong with the values.
func (p *Program) Eval(ctx context.Context, vars map[string]any) (Value, error) {
	return p.EvalFrom(ctx, &Budget{left: costLimit}, vars)
}

// EvalFrom is Eval for one of several expressions with a common budget.
func (p *Program) EvalFrom(ctx context.Context, budget *Budget, vars map[string]any) (v Value, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	allowed := min(budget.left, costLimit)
	if p.nodes > allowed {
		return nil, ErrCost
	}
	m := &meter{ctx: ctx, left: allowed - p.nodes, look: allowed}
	v, _, err = p.run.ContextEval(ctx, &activation{vars: vars, meter: m})
	budget.left -= allowed - m.left
	if err == nil {
		return v, nil
	}
	if ended := ctx.Err(); ended != nil {
		return nil, ended
	}
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) && cancelled.Cause == interpreter.CostLimitExceeded {
		return nil, ErrCost
	}
	return nil, err
}
