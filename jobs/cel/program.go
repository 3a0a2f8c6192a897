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

// ErrCost reports that an expression exceeded its limit or its Budget.
var ErrCost = errors.New("the expression costs more than it may: make the list smaller, or do less with each member")

// Limits of the programs that an Env keeps compiled. A compiled program takes about a
// hundred times the bytes of its source. One definition has a handful of expressions.
const (
	maxPrograms = 4096
	maxSources  = 2 << 20
)

// Env compiles expressions that use a fixed set of variables, and keeps the compiled
// programs. Made by Names. Safe for concurrent use.
type Env struct {
	env func() (*cel.Env, error)

	mu       sync.RWMutex
	programs map[string]*Program // guarded by mu
	sources  int                 // bytes of the keys of programs; guarded by mu
}

// Names returns an Env with these variables, each of any type.
func Names(names ...string) *Env {
	return &Env{
		env:      sync.OnceValues(func() (*cel.Env, error) { return environment(names) }),
		programs: map[string]*Program{},
	}
}

// Program is a compiled expression. Safe for concurrent use.
type Program struct {
	run    cel.Program
	parsed *cel.Ast
	nodes  int // evaluated exactly once, whatever the values of the variables
}

// Value is the result of an expression. A Value may be a variable of another expression.
type Value = ref.Val

// Program returns the compiled source, from the Env's memory if possible. When the
// memory is full, a random program is evicted: cheaper than tracking the least recently
// used, and the memory is rarely full.
func (e *Env) Program(source string) (*Program, error) {
	e.mu.RLock()
	p := e.programs[source]
	e.mu.RUnlock()
	if p != nil {
		return p, nil
	}

	// Compiled outside mu: a slow compilation blocks no evaluation.
	p, err := e.Compile(source)
	if err != nil {
		return nil, err
	}

	e.mu.Lock()
	defer e.mu.Unlock()

	// Another goroutine may have compiled the same source meanwhile.
	if e.programs[source] != nil {
		return e.programs[source], nil
	}

	e.sources += len(source)

	// The order of a map is random: evict until both limits hold.
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

// Compile parses, checks and plans an expression. A constant that is not a valid pattern
// or timestamp is found only by planning. The function format is not available: its
// result can be a thousand times its arguments, and string() with + does the same in
// metered steps.
//
// A panic of the library becomes an error of the expression, because a panic would end a
// request or a consumer of the bus.
func (e *Env) Compile(source string) (p *Program, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, fmt.Errorf("the expression cannot be compiled: %v", r)
		}
	}()

	if len(source) > maxSource {
		return nil, fmt.Errorf("the expression has %d bytes, the limit is %d", len(source), maxSource)
	}

	// All parsers share a cache inside antlr that is not safe for concurrent use.
	compiling.Lock()
	defer compiling.Unlock()

	env, err := e.env()
	if err != nil {
		return nil, fmt.Errorf("CEL environment: %w", err)
	}

	parsed, issues := env.Compile(source)
	if err := issues.Err(); err != nil {
		// The lines after the first draw the position in the source.
		first, _, _ := strings.Cut(err.Error(), "\n")
		return nil, errors.New(strings.TrimPrefix(first, "ERROR: <input>:"))
	}

	// Before planning: the planner evaluates constants.
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

// available rejects format(), whose output is unbounded (see Compile), and protobuf
// messages, which have no JSON form.
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

// Members returns the names x of all selections of.x in the expression.
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

// Eval evaluates the expression. The error is ctx's error if ctx has ended, ErrCost, or a
// description of the problem with the values.
func (p *Program) Eval(ctx context.Context, vars map[string]any) (Value, error) {
	return p.EvalFrom(ctx, &Budget{left: costLimit}, vars)
}

// EvalFrom is Eval with a budget that is shared by several expressions.
func (p *Program) EvalFrom(ctx context.Context, budget *Budget, vars map[string]any) (v Value, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	// One expression gets at most costLimit, even of an unused Budget.
	allowed := min(budget.left, costLimit)
	if p.nodes > allowed {
		return nil, ErrCost
	}

	// The nodes that are evaluated once are paid in advance. ctx is checked at the first charge.
	m := &meter{ctx: ctx, left: allowed - p.nodes, nextCheck: allowed}
	v, _, err = p.run.ContextEval(ctx, &activation{vars: vars, meter: m})

	// Paid also if the evaluation failed.
	budget.left -= allowed - m.left
	if err == nil {
		return v, nil
	}

	// CEL reports an ended context as an error of its own.
	if ended := ctx.Err(); ended != nil {
		return nil, ended
	}

	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) && cancelled.Cause == interpreter.CostLimitExceeded {
		return nil, ErrCost
	}

	return nil, err
}
