// Package automated has the executors of AUTOMATED tasks: expressions evaluated in the
// process, HTTP calls, Go functions registered by name, and an executor that does nothing.
package automated

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/cel"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

const (
	maxAssigns = 64
	maxMessage = 256 // characters of a failure's message
)

// Expression is the executor "expression". It evaluates a list of CEL expressions over
// input, context and the output so far; each expression becomes one member of the output.
// Safe for concurrent use.
type Expression struct {
	env *cel.Env
}

func names() *cel.Env { return cel.Names("input", "context", "output") }

// checking compiles expressions that are checked and not evaluated.
var checking = names()

// NewExpression returns an executor with an empty cache of compiled expressions.
func NewExpression() *Expression {
	return &Expression{env: names()}
}

// ExpressionError reports a problem with one member of an expression list.
type ExpressionError struct {
	Index   int    // in the list
	Name    string // of the output's member
	Message string
}

func (e *ExpressionError) Error() string {
	return fmt.Sprintf("expression[%d] (%s): %s", e.Index, e.Name, e.Message)
}

// CheckExpression compiles a list, and finds the errors that are known before evaluation:
// syntax, types, unknown names, members used before they are computed. The error joins an
// *ExpressionError for each invalid member.
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

		switch p, err := checking.Compile(assign.Value); {
		case assign.Name == "":
			wrong("has no name")
		case known[assign.Name]:
			wrong("is computed twice")
		case err != nil:
			wrong(err.Error())
		default:
			// An expression may use only members that were computed before.
			for _, name := range p.Members("output") {
				if !known[name] {
					wrong("output." + name + " is not computed before")
				}
			}
		}

		// Also after an error, to avoid follow-up errors for members that refer to this one.
		known[assign.Name] = true
	}

	return errors.Join(all...)
}

// Execute computes the output. Its members are in the order of the list.
func (x *Expression) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	input, err := cel.Decode(job.Input)
	if err != nil {
		return jobs.Result{}, permanent("EXPRESSION_ERROR", "input: "+err.Error())
	}

	workflow, err := cel.Decode(job.Context)
	if err != nil {
		return jobs.Result{}, permanent("EXPRESSION_ERROR", "context: "+err.Error())
	}

	output := make(map[string]any, len(job.Config.Expression))
	vars := map[string]any{"input": input, "context": workflow, "output": output}

	// One budget for all expressions of the output.
	budget := cel.NewBudget()
	to := &cel.Encoder{}
	to.WriteByte('{')

	for i, assign := range job.Config.Expression {
		v, err := x.evaluate(ctx, assign, budget, vars)
		if err != nil {
			return jobs.Result{}, err
		}

		if i > 0 {
			to.WriteByte(',')
		}

		to.Text(assign.Name)
		to.WriteByte(':')
		if err := to.Value(v, 1); err != nil {
			return jobs.Result{}, failure(ctx, assign.Name, err)
		}

		output[assign.Name] = v
	}

	to.WriteByte('}')

	// The text of an expression can contain NUL, and two keys of a map can be equal as JSON
	// names; jsonb accepts neither.
	if err := jsonguard.Check(to.Bytes()); err != nil {
		return jobs.Result{}, permanent("EXPRESSION_ERROR", "output: "+err.Error())
	}

	return jobs.Result{Output: to.Bytes()}, nil
}

func (x *Expression) evaluate(ctx context.Context, assign jobs.Assign, budget *cel.Budget, vars map[string]any) (cel.Value, error) {
	p, err := x.env.Program(assign.Value)
	if err != nil {
		return nil, permanent("EXPRESSION_INVALID", assign.Name+": "+err.Error())
	}

	v, err := p.EvalFrom(ctx, budget, vars)
	if err != nil {
		return nil, failure(ctx, assign.Name, err)
	}

	return v, nil
}

// failure converts the error of an evaluation into the failure of the attempt.
func failure(ctx context.Context, name string, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("expression %s: %w", shorten(name), ended)
	}

	switch {
	case errors.Is(err, cel.ErrCost), errors.Is(err, cel.ErrTooLarge):
		return permanent("EXPRESSION_COST", name+": "+err.Error())
	default:
		return permanent("EXPRESSION_ERROR", name+": "+err.Error())
	}
}

// permanent is a failure that no retry repairs.
func permanent(code, message string) *jobs.Failure {
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
