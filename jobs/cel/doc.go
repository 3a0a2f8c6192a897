// Package cel evaluates the expressions of definitions: Google's Common Expression
// Language with the numbers of JSON, a limit on the cost of an expression, and JSON
// as input and output.
//
// # Numbers
//
// JSON has one kind of number, CEL has three that do not mix: in plain CEL 2 * 10.99
// is an error, and an expression fails or not depending on whether a client wrote 10
// or 10.5. In this package whole numbers of the input are int, other numbers are
// double, and arithmetic mixes int and double. int with int stays exact; the result
// is double if int would overflow or if a division leaves a remainder. Two operands
// whose types the checker knows to be int keep CEL's own rules: size(a) / 2 is whole.
//
// # Cost
//
// The author of an expression is not trusted, and neither is the input. CEL bounds
// the size of an expression but not the work: a + a, fifty times, is a list of 2^50
// members; s.replace("", s) of one megabyte writes a terabyte. So every operation is
// charged to a meter before the operation runs:
//
//	source ──Compile──► checked syntax tree
//	            │
//	            ├─ weigh (weight.go): count the nodes that are evaluated once, and insert
//	            │  a call of @step into each loop, which charges the nodes of the loop body
//	            │
//	            └─ planner (call.go): replace each call by a metered call. A function
//	               without a price is rejected, so a new version of CEL cannot add
//	               an unpriced function
//	            ▼
//	        *Program ──Eval(ctx, vars)──► Value, ErrCost, or ctx's error
//
// The meter (meter.go) panics with CEL's own EvalCancelledError when the budget is
// used up or the context has ended; CEL turns the panic into an error of the
// evaluation. One unit is about 50 to 200 ns and at most about 100 bytes. Eval gives
// an expression 2,000,000 units; EvalFrom shares a Budget of 4,000,000 among the
// expressions of one output.
//
// # Ownership
//
// An Env belongs to the executor that made the Env, and keeps compiled programs for
// the life of the process, bounded by number and by source bytes. Programs are
// immutable and shared by all attempts. A meter belongs to one evaluation. All
// compilations of the process take one lock, because the parser's cache is not
// safe for concurrent use.
package cel
