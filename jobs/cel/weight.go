package cel

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// The functions that an expression is given by us, beside those that it names.
const (
	stepFunction  = "@step"  // one turn of a loop
	rangeFunction = "@range" // what a loop goes through
	indexFunction = "@index" // a[b] with a b that is not written there
)

// weighing prepares a checked expression for the meter: each loop pays for one turn
// with the nodes of its body, and for what it goes through; an index is a call. What
// is left costs no more than its nodes, which are counted beforehand.
type weighing struct {
	fac  ast.ExprFactory
	next int64 // id
}

// weigh answers how many nodes are worked out once.
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
		if c.FunctionName() == operators.Index && c.Args()[1].Kind() != ast.LiteralKind {
			e.SetKindCase(w.fac.NewCall(e.ID(), indexFunction, c.Args()...))
		}
	case ast.SelectKind:
		nodes += w.visit(e.AsSelect().Operand())
	case ast.ListKind:
		l := e.AsList()
		for _, x := range l.Elements() {
			if x.Kind() != ast.LiteralKind { // a list of literals is made once, in the plan
				nodes += w.visit(x)
			}
		}
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
	once := 4 + w.visit(c.IterRange()) + w.visit(c.AccuInit()) + w.visit(c.Result())
	turn := 2 + w.visit(c.LoopCondition()) + w.visit(c.LoopStep())

	through := w.fac.NewCall(w.id(), rangeFunction, c.IterRange())
	step := w.fac.NewCall(w.id(), stepFunction, c.LoopStep(), w.fac.NewLiteral(w.id(), types.Int(turn)))
	e.SetKindCase(w.fac.NewComprehension(e.ID(), through, c.IterVar(), c.AccuVar(), c.AccuInit(), c.LoopCondition(), step, c.Result()))
	return once
}
