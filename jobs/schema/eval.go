package schema

import (
	"context"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// evaluation is one evaluation of a document against a schema. While silent is above
// zero, only the verdict matters and evaluation stops at the first violation; at zero,
// violations are collected in found.
type evaluation struct {
	ctx       context.Context
	left      int // units of work
	nextCheck int // of ctx: when left is below
	silent    int // number of enclosing silent evaluations
	path      []string
	found     []Violation
	stack     []frame // from the root of the schema to the current node
	value     int     // the last number given to a value
	key       []byte  // buffer for keys
}

// frame is a node on the stack, and the number of the value that the node is evaluated
// against.
type frame struct {
	node  *node
	value int
}

// charge pays units of work, before the work is done. The first charge checks the context.
func (v *evaluation) charge(units int) {
	if v.left -= units; v.left < 0 {
		panic(abort{errTooMuchWork})
	}

	// nextCheck is 0 at the first charge.
	if v.left < v.nextCheck || v.nextCheck == 0 {
		v.nextCheck = v.left - ctxCheckInterval
		if err := v.ctx.Err(); err != nil {
			panic(abort{err})
		}
	}
}

// reporting reports whether violations are collected.
func (v *evaluation) reporting() bool { return v.silent == 0 }

// evalSilently is eval without collecting violations.
func (v *evaluation) evalSilently(n *node, x any, value int, seen *marks) bool {
	v.silent++
	valid := v.eval(n, x, value, seen)
	v.silent--
	return valid
}

// child evaluates a member or an item of the current value.
func (v *evaluation) child(n *node, x any, name string) bool {
	// Saves the path for the frequent schema true.
	if n.always {
		return true
	}

	v.value++
	v.path = append(v.path, name)
	valid := v.eval(n, x, v.value, nil)
	v.path = v.path[:len(v.path)-1]

	return valid
}

// item is child for an item of a list. A silent evaluation saves the text of the index.
func (v *evaluation) item(n *node, x any, at int) bool {
	if v.reporting() {
		return v.child(n, x, strconv.Itoa(at))
	}
	return v.child(n, x, "")
}

// eval reports whether x is valid against n. seen, unless nil, collects the members and
// items that were evaluated, for unevaluatedProperties and unevaluatedItems of a node
// above.
func (v *evaluation) eval(n *node, x any, value int, seen *marks) bool {
	v.charge(1)

	switch {
	case n.always:
		return true
	case n.never:
		return v.report("is not allowed")
	case v.cycles(n, value):
		return v.report("does not match the schema")
	}

	v.stack = append(v.stack, frame{n, value})
	defer v.pop()

	// Before draft 2019-09, all keywords beside a $ref are ignored.
	if n.Ref != nil && n.DraftVersion < 2019 {
		return v.eval(n.ref, x, value, seen)
	}

	k := kindOf(x)
	if !v.valueKeywords(n, x, k) {
		return false
	}

	// An unevaluated keyword needs to know what the keywords beside have evaluated.
	if seen == nil && (n.unevaluatedProps != nil || n.unevaluatedItems != nil) {
		seen = &marks{}
	}

	valid := true

	// both combines a verdict with the previous ones, and reports whether to go on.
	both := func(ok bool) bool {
		valid = valid && ok
		return valid || v.reporting()
	}

	if n.ref != nil && !both(v.evalInPlace(n.ref, x, value, seen)) {
		return false
	}

	switch x := x.(type) {
	case map[string]any:
		both(v.objectKeywords(n, x, value, seen))
	case []any:
		both(v.arrayKeywords(n, x, seen))
	case string:
		both(v.stringKeywords(n, x))
	case json.Number:
		both(v.numberKeywords(n, string(x)))
	}

	if !valid && !v.reporting() || !both(v.dynamicReferences(n, x, value, seen)) || !both(v.combinators(n, x, value, seen)) {
		return false
	}

	return both(v.unevaluated(n, x, seen)) && valid
}

// pop removes the node that eval has pushed.
func (v *evaluation) pop() { v.stack = v.stack[:len(v.stack)-1] }

// cycles reports whether the schema is already being evaluated against the same value.
func (v *evaluation) cycles(n *node, value int) bool {
	for i := len(v.stack) - 1; i >= 0 && v.stack[i].value == value; i-- {
		if v.stack[i].node == n {
			return true
		}

		// The stack may be long: one unit pays for eight frames.
		if (len(v.stack)-i)%8 == 0 {
			v.charge(1)
		}
	}

	return false
}

// valueKeywords evaluates type, const, enum and format. After a violation of one of them
// no other keyword is evaluated.
func (v *evaluation) valueKeywords(n *node, x any, k kind) bool {
	if n.types != 0 {
		valid := n.types.has(k)

		// 1.0 is an integer.
		if valid && n.integer && k == number {
			valid = decimalOf(string(x.(json.Number))).whole()
		}
		if !valid {
			return v.report("must be %s, is %s", typeNames{n}, k)
		}
	}

	if n.constant != nil && !v.memberOf(n.constant, x, k) {
		return v.report("must be %s", jsonText{n.constant.values[0]})
	}
	if n.enum != nil && !v.memberOf(n.enum, x, k) {
		return v.report("must be one of %s", jsonText{n.enum.values})
	}
	if n.Format != nil && !v.matchesFormat(n, x) {
		return v.report("must have the format %s", n.Format.Name)
	}

	return true
}

// memberOf looks x up in a set by its key. The key is cut off at the length of the
// longest key of the set, so a large x costs no more than the set.
func (v *evaluation) memberOf(s *set, x any, k kind) bool {
	v.charge(1)
	if !s.kinds.has(k) {
		return false
	}

	var short bool
	v.key, short = appendKey(v.key[:0], x, s.longest)
	v.charge(len(v.key) / 8)

	return short && s.keys[string(v.key)]
}

func (v *evaluation) matchesFormat(n *node, x any) bool {
	s, ok := x.(string)
	if !ok {
		return true
	}

	if n.Format.Name == "regex" {
		// A pattern of three bytes may be a class with hundreds of ranges.
		v.charge(1 + 60*min(len(s), pattern.MaxSource))
		return pattern.Check(s) == nil
	}

	v.charge(1 + len(s)/4)
	return n.Format.Validate(s) == nil
}

func (v *evaluation) stringKeywords(n *node, s string) bool {
	valid := true
	if n.MinLength != nil || n.MaxLength != nil {
		// Counting characters is cheap: 64 of them for one unit.
		v.charge(1 + len(s)/64)
		length := utf8.RuneCountInString(s)
		if n.MinLength != nil && length < *n.MinLength {
			valid = v.report("must have at least %d characters, has %d", *n.MinLength, length)
		}
		if n.MaxLength != nil && length > *n.MaxLength {
			valid = v.report("must have at most %d characters, has %d", *n.MaxLength, length)
		}
	}

	if n.pattern != nil && (valid || v.reporting()) && !v.matches(n.pattern, s) {
		valid = v.report("must match the pattern %s", n.pattern)
	}

	return valid
}

// matches charges one unit for four instructions of the pattern.
func (v *evaluation) matches(p *pattern.Pattern, s string) bool {
	v.charge(1 + p.Cost(len(s))/4)
	return p.MatchString(s)
}

func (v *evaluation) numberKeywords(n *node, x string) bool {
	if n.minimum == nil && n.maximum == nil && n.exclusiveMinimum == nil && n.exclusiveMaximum == nil && n.multipleOf == nil {
		return true
	}

	d := decimalOf(x)

	// Comparing means computing with all digits of the exact number.
	size := len(d.digits) + max(d.exponent, -d.exponent)
	v.charge(2 + size/8)

	valid := true
	if b := n.minimum; b != nil && b.compare(x) < 0 {
		valid = v.report("must be at least %s", b)
	}

	if b := n.maximum; b != nil && b.compare(x) > 0 {
		valid = v.report("must be at most %s", b)
	}

	if b := n.exclusiveMinimum; b != nil && b.compare(x) <= 0 {
		valid = v.report("must be more than %s", b)
	}

	if b := n.exclusiveMaximum; b != nil && b.compare(x) >= 0 {
		valid = v.report("must be less than %s", b)
	}

	if b := n.multipleOf; b != nil {
		v.charge(4 + size + b.bits/4)
		if !b.divides(x) {
			valid = v.report("must be a multiple of %s", b)
		}
	}

	return valid
}

func (v *evaluation) arrayKeywords(n *node, list []any, seen *marks) bool {
	valid := true
	if n.MinItems != nil && len(list) < *n.MinItems {
		valid = v.report("must have at least %d items, has %d", *n.MinItems, len(list))
	}
	if n.MaxItems != nil && len(list) > *n.MaxItems {
		valid = v.report("must have at most %d items, has %d", *n.MaxItems, len(list))
	}

	if n.UniqueItems && (valid || v.reporting()) {
		if i, j, ok := v.duplicates(list); ok {
			valid = v.report("must have no equal items, %d and %d are", i, j)
		}
	}

	first := min(len(n.prefixItems), len(list))
	for i, x := range list[:first] {
		if valid = v.item(n.prefixItems[i], x, i) && valid; !valid && !v.reporting() {
			return false
		}
	}

	seen.itemsBefore(first)

	switch {
	case n.items == nil:
	case n.DraftVersion < 2020 && n.items.never && n.items.Location == "" && first < len(list):
		// additionalItems: false. One violation, instead of one for each item.
		valid = v.report("has %d items too many", len(list)-first)
	default:
		for i := first; i < len(list) && (valid || v.reporting()); i++ {
			valid = v.item(n.items, list[i], i) && valid
		}
	}

	if n.itemsEvaluated {
		seen.allItemsEvaluated()
	}
	if n.contains != nil && (valid || v.reporting()) {
		valid = v.contains(n, list, seen) && valid
	}

	return valid
}

func (v *evaluation) contains(n *node, list []any, seen *marks) bool {
	least, most := 1, len(list)
	if n.MinContains != nil {
		least = *n.MinContains
	}
	if n.MaxContains != nil {
		most = *n.MaxContains
	}

	matched := 0
	for i, x := range list {
		v.silent++
		ok := v.item(n.contains, x, i)
		v.silent--
		if ok {
			matched++
			// Before draft 2020-12, contains did not count as evaluating an item.
			if n.DraftVersion >= 2020 {
				seen.item(i)
			}
		}
	}

	if matched > most {
		return v.report("has too many of the items it must contain")
	}
	if matched >= least {
		return true
	}
	if len(list) == 0 || !v.reporting() {
		return v.report("has too few of the items it must contain")
	}

	// No item is valid: report why, item by item.
	for i, x := range list {
		v.item(n.contains, x, i)
	}

	return false
}
