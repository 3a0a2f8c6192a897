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

// ErrCost says that an expression costs more than it may.
var ErrCost = errors.New("costs more than an expression may")

// maxPrograms are kept compiled; a definition has a handful.
const maxPrograms = 4096

// Env knows the names that its expressions may use, and keeps what it compiled. Make
// it with Names. Safe for concurrent use.
type Env struct {
	env func() (*cel.Env, error)

	mu       sync.RWMutex
	programs map[string]*Program // guarded by mu
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
	if len(e.programs) >= maxPrograms {
		for other := range e.programs {
			delete(e.programs, other)
			break
		}
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
	var banned bool
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		banned = banned || e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "format"
	}))
	if banned {
		return nil, errors.New("format is not available, use string() and +")
	}
	run, err := env.Program(parsed, programOptions...)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return &Program{run: run, parsed: parsed}, nil
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
	// The program looks at ctx only inside its loops.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v, _, err := p.run.ContextEval(ctx, vars)
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
