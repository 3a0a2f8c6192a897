// Package automated holds the executors of AUTOMATED tasks: expressions worked
// out in the process, HTTP calls, Go functions registered by name, and one that
// does nothing.
package automated

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/seed-3f7a0631/tes/jobs"
)

const (
	maxAssigns  = 64
	maxPrograms = 4096    // compiled expressions kept; a definition has a handful
	maxOutput   = 1 << 20 // bytes
	maxMessage  = 256     // characters of a failure's message
)

// Expression is the executor "expression": it computes the members of the output
// one after the other, in CEL, from input, context and the output so far. It
// compiles each expression once. Safe for concurrent use.
type Expression struct {
	mu       sync.RWMutex
	programs map[string]cel.Program
}

// NewExpression returns an executor with nothing compiled yet.
func NewExpression() *Expression {
	return &Expression{programs: make(map[string]cel.Program)}
}

// ExpressionError says what is wrong with one member of an expression list.
type ExpressionError struct {
	Index   int    // in the list
	Name    string // of the output's member
	Message string
}

func (e *ExpressionError) Error() string {
	return fmt.Sprintf("expression[%d] (%s): %s", e.Index, e.Name, e.Message)
}

// CheckExpression compiles a list and finds what can be known before it runs:
// syntax, types, unknown names, members used before they are computed. Its error
// joins an *ExpressionError for each member that is wrong.
func CheckExpression(list []jobs.Assign) error {
	if len(list) == 0 {
		return errors.New("expression: is empty")
	}
	if len(list) > maxAssigns {
		return fmt.Errorf("expression: has %d members, the limit is %d", len(list), maxAssigns)
	}
	var all []error
	known := make(map[string]bool, len(list))
	for i, assign := range list {
		wrong := func(message string) {
			all = append(all, &ExpressionError{Index: i, Name: shorten(assign.Name), Message: shorten(message)})
		}
		switch _, parsed, err := compile(assign.Value); {
		case assign.Name == "":
			wrong("has no name")
		case known[assign.Name]:
			wrong("is computed twice")
		case err != nil:
			wrong(err.Error())
		default:
			for _, name := range outputs(parsed) {
				if !known[name] {
					wrong("output." + name + " is not computed before")
				}
			}
		}
		known[assign.Name] = true
	}
	return errors.Join(all...)
}

// Execute computes the output. Its members stand in the order of the list.
func (x *Expression) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	input, err := decode(job.Input)
	if err != nil {
		return jobs.Result{}, final("EXPRESSION_ERROR", "input: "+err.Error())
	}
	workflow, err := decode(job.Context)
	if err != nil {
		return jobs.Result{}, final("EXPRESSION_ERROR", "context: "+err.Error())
	}
	output := make(map[string]any, len(job.Config.Expression))
	vars := map[string]any{"input": input, "context": workflow, "output": output}

	to := &encoder{}
	to.WriteByte('{')
	for i, assign := range job.Config.Expression {
		v, err := x.evaluate(ctx, assign, vars)
		if err != nil {
			return jobs.Result{}, err
		}
		if i > 0 {
			to.WriteByte(',')
		}
		to.text(assign.Name)
		to.WriteByte(':')
		if err := to.value(v, 1); err != nil {
			return jobs.Result{}, failure(ctx, assign.Name, err)
		}
		output[assign.Name] = v
	}
	to.WriteByte('}')
	// Texts and maps made by an expression may hold what jsonb does not: NUL, names
	// that are one when written.
	if err := jobs.GuardJSON(to.Bytes()); err != nil {
		return jobs.Result{}, final("EXPRESSION_ERROR", "output: "+err.Error())
	}
	return jobs.Result{Output: to.Bytes()}, nil
}

func (x *Expression) evaluate(ctx context.Context, assign jobs.Assign, vars map[string]any) (ref.Val, error) {
	p, err := x.program(assign.Value)
	if err != nil {
		return nil, final("EXPRESSION_INVALID", assign.Name+": "+err.Error())
	}
	// The program looks at ctx only inside its loops.
	if err := ctx.Err(); err != nil {
		return nil, failure(ctx, assign.Name, err)
	}
	v, _, err := p.ContextEval(ctx, vars)
	if err != nil {
		return nil, failure(ctx, assign.Name, err)
	}
	return v, nil
}

// program compiles source or finds it compiled. When the cache is full a random
// entry goes: cheaper than to know the oldest, and it is never far from full.
func (x *Expression) program(source string) (cel.Program, error) {
	x.mu.RLock()
	p := x.programs[source]
	x.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	p, _, err := compile(source)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.programs) >= maxPrograms {
		for other := range x.programs {
			delete(x.programs, other)
			break
		}
	}
	x.programs[source] = p
	return p, nil
}

var compiling sync.Mutex

// compile parses, checks and plans; only the plan finds a constant that is no
// pattern or no timestamp. format is left out: its result can be a thousand times
// its arguments, and string() with + does the same in steps that are paid.
func compile(source string) (cel.Program, *cel.Ast, error) {
	// All parsers share a cache in antlr that does not guard itself.
	compiling.Lock()
	defer compiling.Unlock()
	env, err := environment()
	if err != nil {
		return nil, nil, fmt.Errorf("CEL environment: %w", err)
	}
	parsed, issues := env.Compile(source)
	if err := issues.Err(); err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n") // the rest draws the place
		return nil, nil, errors.New(strings.TrimPrefix(first, "ERROR: <input>:"))
	}
	var banned bool
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		banned = banned || e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "format"
	}))
	if banned {
		return nil, nil, errors.New("format is not available, use string() and +")
	}
	p, err := env.Program(parsed, programOptions...)
	if err != nil {
		return nil, nil, fmt.Errorf("plan: %w", err)
	}
	return p, parsed, nil
}

// outputs lists the names x of each output.x.
func outputs(parsed *cel.Ast) (names []string) {
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.SelectKind {
			return
		}
		s := e.AsSelect()
		if of := s.Operand(); of.Kind() == ast.IdentKind && of.AsIdent() == "output" && !slices.Contains(names, s.FieldName()) {
			names = append(names, s.FieldName())
		}
	}))
	return names
}

// failure gives an evaluation's error its meaning.
func failure(ctx context.Context, name string, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("expression %s: %w", shorten(name), ended)
	}
	var cancelled interpreter.EvalCancelledError
	switch {
	case errors.As(err, &cancelled) && cancelled.Cause == interpreter.CostLimitExceeded:
		return final("EXPRESSION_COST", name+": costs more than an expression may")
	case errors.Is(err, errOutputTooLarge):
		return final("EXPRESSION_COST", name+": "+err.Error())
	default:
		return final("EXPRESSION_ERROR", name+": "+err.Error())
	}
}

// final is a failure that no retry would mend.
func final(code, message string) *jobs.Failure {
	no := false
	return &jobs.Failure{Code: code, Message: shorten(message), Retryable: &no}
}

func shorten(message string) string {
	r := []rune(strings.ToValidUTF8(message, "�"))
	if len(r) > maxMessage {
		r = append(r[:maxMessage-1], '…')
	}
	return string(r)
}

// decode reads JSON as CEL is to see it; nothing is an empty object.
func decode(raw json.RawMessage) (any, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return map[string]any{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("is not valid JSON")
	}
	return numbers(v), nil
}

// numbers makes whole numbers int64 and all others float64. 1.0 is whole: JSON
// does not tell it from 1.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n
		}
		f, _ := strconv.ParseFloat(string(v), 64)
		if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f)
		}
		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = numbers(v[name])
		}
	}
	return v
}

var errOutputTooLarge = errors.New("output larger than 1 MiB")

// encoder writes CEL values as JSON. It stops at maxOutput: a list may hold one
// large value a thousand times.
type encoder struct{ bytes.Buffer }

func (to *encoder) value(v ref.Val, depth int) error {
	if depth > 64 {
		return errors.New("output deeper than 64")
	}
	if to.Len() > maxOutput {
		return errOutputTooLarge
	}
	switch v := v.(type) {
	case types.Null:
		to.WriteString("null")
	case types.Bool:
		to.Write(strconv.AppendBool(to.AvailableBuffer(), bool(v)))
	case types.Int:
		to.Write(strconv.AppendInt(to.AvailableBuffer(), int64(v), 10))
	case types.Uint:
		to.Write(strconv.AppendUint(to.AvailableBuffer(), uint64(v), 10))
	case types.Double:
		return to.double(float64(v))
	case types.String:
		to.text(string(v))
	case types.Bytes:
		to.text(base64.StdEncoding.EncodeToString(v))
	case types.Timestamp:
		to.text(v.UTC().Format(time.RFC3339Nano))
	case types.Duration:
		to.text(v.String())
	case traits.Mapper:
		return to.object(v, depth)
	case traits.Lister:
		return to.array(v, depth)
	default:
		return fmt.Errorf("a %s has no JSON form", v.Type().TypeName())
	}
	return nil
}

// double writes whole numbers without a point, as JSON does not need one.
func (to *encoder) double(f float64) error {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return errors.New("the number is out of range")
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	if f == 0 {
		f = 0 // and not -0
	}
	to.Write(strconv.AppendFloat(to.AvailableBuffer(), f, format, -1, 64))
	return nil
}

func (to *encoder) text(s string) {
	b, _ := json.Marshal(s) // a string always has a form
	to.Write(b)
}

func (to *encoder) array(list traits.Lister, depth int) error {
	to.WriteByte('[')
	for it, first := list.Iterator(), true; it.HasNext() == types.True; first = false {
		if !first {
			to.WriteByte(',')
		}
		if err := to.value(it.Next(), depth+1); err != nil {
			return err
		}
	}
	to.WriteByte(']')
	return nil
}

// object writes the members in the order of their names: CEL's maps have none.
func (to *encoder) object(m traits.Mapper, depth int) error {
	type member struct {
		name string
		key  ref.Val
	}
	var members []member
	for it := m.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		name, ok := key.ConvertToType(types.StringType).(types.String)
		if !ok {
			return errors.New("a map's key is no name")
		}
		members = append(members, member{string(name), key})
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	to.WriteByte('{')
	for i, member := range members {
		if i > 0 {
			to.WriteByte(',')
		}
		to.text(member.name)
		to.WriteByte(':')
		if err := to.value(m.Get(member.key), depth+1); err != nil {
			return err
		}
	}
	to.WriteByte('}')
	return nil
}
