package cel

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// The functions that weigh inserts into an expression.
const (
	stepFunction  = "@step"  // one iteration of a loop
	rangeFunction = "@range" // the collection that a loop iterates over
	indexFunction = "@index" // a[b] with a b that is not a literal
)

// weighing rewrites a checked expression for the meter: each loop charges one iteration
// with the nodes of its body, and charges the iterated collection; an index becomes a
// call. All other nodes are evaluated at most once, and are counted in advance.
type weighing struct {
	fac  ast.ExprFactory
	next int64 // id
}

// weigh rewrites the expression, and returns the number of nodes that are evaluated once.
func weigh(a *ast.AST) int {
	w := &weighing{fac: ast.NewExprFactory(), next: ast.MaxID(a) + 1}
	return w.visit(a.Expr())
}

func (w *weighing) id() int64 {
	w.next++
	return w.next
}

func (w *weighing) visit(e ast.Expr) int {
	nodes := 1

	switch e.Kind() {
	case ast.CallKind:
		c := e.AsCall()
		if c.IsMemberFunction() {
			nodes += w.visit(c.Target())
		}

		for _, arg := range c.Args() {
			nodes += w.visit(arg)
		}

		// CEL evaluates an index without calling a function, so the meter would not see a
		// long key.
		if c.FunctionName() == operators.Index && c.Args()[1].Kind() != ast.LiteralKind {
			e.SetKindCase(w.fac.NewCall(e.ID(), indexFunction, c.Args()...))
		}
	case ast.SelectKind:
		nodes += w.visit(e.AsSelect().Operand())
	case ast.ListKind:
		l := e.AsList()
		for _, x := range l.Elements() {
			// A literal is built once, by the planner.
			if x.Kind() != ast.LiteralKind {
				nodes += w.visit(x)
			}
		}

		// A list that is not constant is built at each evaluation.
		if nodes > 1 {
			nodes += l.Size()
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			nodes += w.visit(entry.AsMapEntry().Key()) + w.visit(entry.AsMapEntry().Value())
		}
	case ast.ComprehensionKind:
		nodes += w.loop(e)
	}

	return nodes
}

func (w *weighing) loop(e ast.Expr) int {
	c := e.AsComprehension()

	// 4 and 2 are the nodes of the loop itself, outside and inside of an iteration.
	once := 4 + w.visit(c.IterRange()) + w.visit(c.AccuInit()) + w.visit(c.Result())
	iteration := 2 + w.visit(c.LoopCondition()) + w.visit(c.LoopStep())

	collection := w.fac.NewCall(w.id(), rangeFunction, c.IterRange())
	step := w.fac.NewCall(w.id(), stepFunction, c.LoopStep(), w.fac.NewLiteral(w.id(), types.Int(iteration)))
	e.SetKindCase(w.fac.NewComprehension(e.ID(), collection, c.IterVar(), c.AccuVar(), c.AccuInit(), c.LoopCondition(), step, c.Result()))

	return once
}
