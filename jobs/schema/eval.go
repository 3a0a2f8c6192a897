package schema

import (
	"context"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// visit is one walk of a document along a schema. While quiet is above zero it only
// wants to know whether the document fits, and stops at the first place that does
// not; else it notes the places.
type visit struct {
	ctx   context.Context
	left  int // units of work
	look  int // at the context, when left is this
	quiet int
	path  []string
	found []Violation
	way   []step // from the root of the schema to here
	value int    // the last number given to a value
	key   []byte // room to write keys in
}

// step is one schema on the way, and the number of the value that it is held against.
type step struct {
	node  *node
	value int
}

// charge pays for work before it is done.
func (v *visit) charge(units int) {
	if v.left -= units; v.left < 0 {
		panic(stop{errTooMuchWork})
	}
	if v.left < v.look || v.look == 0 {
		v.look = v.left - lookEvery
		if err := v.ctx.Err(); err != nil {
			panic(stop{err})
		}
	}
}

func (v *visit) loud() bool { return v.quiet == 0 }

// quietly asks whether x fits a subschema, and notes nothing.
func (v *visit) quietly(n *node, x any, value int, seen *marks) bool {
	v.quiet++
	fits := v.eval(n, x, value, seen)
	v.quiet--
	return fits
}

// child holds one member or item against a subschema.
func (v *visit) child(n *node, x any, name string) bool {
	if n.always {
		return true
	}
	v.value++
	v.path = append(v.path, name)
	fits := v.eval(n, x, v.value, nil)
	v.path = v.path[:len(v.path)-1]
	return fits
}

func (v *visit) item(n *node, x any, at int) bool {
	if v.loud() {
		return v.child(n, x, strconv.Itoa(at))
	}
	return v.child(n, x, "")
}

// eval reports whether x fits n. seen, if not nil, learns which members and items
// were evaluated, for the unevaluated keywords of a schema above.
func (v *visit) eval(n *node, x any, value int, seen *marks) bool {
	v.charge(1)
	switch {
	case n.always:
		return true
	case n.never:
		return v.wrong("is not allowed")
	case v.cycles(n, value):
		return v.wrong("does not match the schema")
	}
	v.way = append(v.way, step{n, value})
	defer v.back()
	if n.Ref != nil && n.DraftVersion < 2019 { // what stands beside it is ignored
		return v.eval(n.ref, x, value, seen)
	}

	k := kindOf(x)
	if !v.fitsValues(n, x, k) {
		return false
	}
	if seen == nil && (n.unevaluated != nil || n.restItems != nil) {
		seen = &marks{}
	}
	fits := true
	both := func(ok bool) bool { // whether to go on
		fits = fits && ok
		return fits || v.loud()
	}
	if n.ref != nil && !both(v.within(n.ref, x, value, seen)) {
		return false
	}
	switch x := x.(type) {
	case map[string]any:
		both(v.object(n, x, value, seen))
	case []any:
		both(v.array(n, x, seen))
	case string:
		both(v.text(n, x))
	case json.Number:
		both(v.number(n, string(x)))
	}
	if !fits && !v.loud() || !both(v.references(n, x, value, seen)) || !both(v.combined(n, x, value, seen)) {
		return false
	}
	return both(v.unevaluated(n, x, seen)) && fits
}

func (v *visit) back() { v.way = v.way[:len(v.way)-1] }

// cycles reports that this schema is being held against this very value already.
func (v *visit) cycles(n *node, value int) bool {
	for i := len(v.way) - 1; i >= 0 && v.way[i].value == value; i-- {
		if v.way[i].node == n {
			return true
		}
		if (len(v.way)-i)%8 == 0 {
			v.charge(1)
		}
	}
	return false
}

// fitsValues looks at type, const, enum and format. Where one does not fit, no other
// keyword is looked at.
func (v *visit) fitsValues(n *node, x any, k kind) bool {
	if n.types != 0 {
		fits := n.types.has(k)
		if fits && n.integer && k == number {
			fits = decimalOf(string(x.(json.Number))).whole()
		}
		if !fits {
			return v.wrong("must be %s, is %s", typeNames{n}, k)
		}
	}
	if n.only != nil && !v.among(n.only, x, k) {
		return v.wrong("must be %s", shown{n.only.values[0]})
	}
	if n.allowed != nil && !v.among(n.allowed, x, k) {
		return v.wrong("must be one of %s", shown{n.allowed.values})
	}
	if n.Format != nil && !v.formatted(n, x) {
		return v.wrong("must have the format %s", n.Format.Name)
	}
	return true
}

// among looks a value up by its key, which is never made longer than the set's.
func (v *visit) among(s *set, x any, k kind) bool {
	v.charge(1)
	if !s.kinds.has(k) {
		return false
	}
	var short bool
	v.key, short = appendKey(v.key[:0], x, s.longest)
	v.charge(len(v.key) / 8)
	return short && s.keys[string(v.key)]
}

func (v *visit) formatted(n *node, x any) bool {
	s, ok := x.(string)
	if !ok {
		return true
	}
	if n.Format.Name == "regex" {
		v.charge(1 + 60*min(len(s), pattern.MaxSource)) // a class of three bytes has hundreds of ranges
		return pattern.Check(s) == nil
	}
	v.charge(1 + len(s)/4)
	return n.Format.Validate(s) == nil
}

func (v *visit) text(n *node, s string) bool {
	fits := true
	if n.MinLength != nil || n.MaxLength != nil {
		v.charge(1 + len(s)/64)
		length := utf8.RuneCountInString(s)
		if n.MinLength != nil && length < *n.MinLength {
			fits = v.wrong("must have at least %d characters, has %d", *n.MinLength, length)
		}
		if n.MaxLength != nil && length > *n.MaxLength {
			fits = v.wrong("must have at most %d characters, has %d", *n.MaxLength, length)
		}
	}
	if n.pattern != nil && (fits || v.loud()) && !v.matches(n.pattern, s) {
		fits = v.wrong("must match the pattern %s", n.pattern)
	}
	return fits
}

// matches pays for four of a pattern's instructions with one unit.
func (v *visit) matches(p *pattern.Pattern, s string) bool {
	v.charge(1 + p.Cost(len(s))/4)
	return p.MatchString(s)
}

func (v *visit) number(n *node, x string) bool {
	if n.minimum == nil && n.maximum == nil && n.above == nil && n.below == nil && n.multiple == nil {
		return true
	}
	d := decimalOf(x)
	size := len(d.digits) + max(d.exponent, -d.exponent) // digits of the exact number
	v.charge(2 + size/8)

	fits := true
	if b := n.minimum; b != nil && b.compare(x) < 0 {
		fits = v.wrong("must be at least %s", b)
	}
	if b := n.maximum; b != nil && b.compare(x) > 0 {
		fits = v.wrong("must be at most %s", b)
	}
	if b := n.above; b != nil && b.compare(x) <= 0 {
		fits = v.wrong("must be more than %s", b)
	}
	if b := n.below; b != nil && b.compare(x) >= 0 {
		fits = v.wrong("must be less than %s", b)
	}
	if b := n.multiple; b != nil {
		v.charge(4 + size + b.bits/4)
		if !b.divides(x) {
			fits = v.wrong("must be a multiple of %s", b)
		}
	}
	return fits
}

func (v *visit) array(n *node, list []any, seen *marks) bool {
	fits := true
	if n.MinItems != nil && len(list) < *n.MinItems {
		fits = v.wrong("must have at least %d items, has %d", *n.MinItems, len(list))
	}
	if n.MaxItems != nil && len(list) > *n.MaxItems {
		fits = v.wrong("must have at most %d items, has %d", *n.MaxItems, len(list))
	}
	if n.UniqueItems && (fits || v.loud()) {
		if i, j, ok := v.duplicates(list); ok {
			fits = v.wrong("must have no equal items, %d and %d are", i, j)
		}
	}
	first := min(len(n.prefix), len(list))
	for i, x := range list[:first] {
		if fits = v.item(n.prefix[i], x, i) && fits; !fits && !v.loud() {
			return false
		}
	}
	seen.itemsBefore(first)
	switch {
	case n.rest == nil:
	case n.DraftVersion < 2020 && n.rest.never && n.rest.Location == "" && first < len(list): // additionalItems: false
		fits = v.wrong("has %d items too many", len(list)-first)
	default:
		for i := first; i < len(list) && (fits || v.loud()); i++ {
			fits = v.item(n.rest, list[i], i) && fits
		}
	}
	if n.itemsEvaluated {
		seen.allItemsEvaluated()
	}
	if n.contains != nil && (fits || v.loud()) {
		fits = v.contains(n, list, seen) && fits
	}
	return fits
}

func (v *visit) contains(n *node, list []any, seen *marks) bool {
	least, most := 1, len(list)
	if n.MinContains != nil {
		least = *n.MinContains
	}
	if n.MaxContains != nil {
		most = *n.MaxContains
	}
	matched := 0
	for i, x := range list {
		v.quiet++
		ok := v.item(n.contains, x, i)
		v.quiet--
		if ok {
			matched++
			if n.DraftVersion >= 2020 {
				seen.item(i)
			}
		}
	}
	if matched > most {
		return v.wrong("has too many of the items it must contain")
	}
	if matched >= least {
		return true
	}
	if len(list) == 0 || !v.loud() {
		return v.wrong("has too few of the items it must contain")
	}
	for i, x := range list { // what each of them lacks
		v.item(n.contains, x, i)
	}
	return false
}

// references follows $recursiveRef and $dynamicRef: the outermost resource on the way
// that has the anchor decides.
func (v *visit) references(n *node, x any, value int, seen *marks) bool {
	fits := true
	if to := n.recursive; to != nil {
		if to.RecursiveAnchor {
			for _, s := range v.way {
				if v.charge(1); s.node.resource != nil && s.node.resource.recursive && s.node.resource.root != nil {
					to = s.node.resource.root
					break
				}
			}
		}
		fits = v.within(to, x, value, seen)
	}
	if to := n.dynamic; to != nil && (fits || v.loud()) {
		if n.dynamicName != "" && to.DynamicAnchor == n.dynamicName {
			for _, s := range v.way {
				v.charge(1)
				if s.node.resource != nil && s.node.resource.anchors[n.dynamicName] != nil {
					to = s.node.resource.anchors[n.dynamicName]
					break
				}
			}
		}
		fits = v.within(to, x, value, seen) && fits
	}
	return fits
}

// within holds the same value against a subschema, and learns what that evaluated if
// it fits.
func (v *visit) within(n *node, x any, value int, seen *marks) bool {
	if seen == nil {
		return v.eval(n, x, value, nil)
	}
	own := &marks{}
	fits := v.eval(n, x, value, own)
	if fits {
		v.charge(seen.merge(own))
	}
	return fits
}

// combined looks at not, allOf, anyOf, oneOf and if.
func (v *visit) combined(n *node, x any, value int, seen *marks) bool {
	fits := true
	if n.not != nil && v.quietly(n.not, x, value, nil) {
		fits = v.wrong("matches what is ruled out")
	}
	for _, each := range n.allOf {
		if !fits && !v.loud() {
			return false
		}
		fits = v.within(each, x, value, seen) && fits
	}
	if len(n.anyOf) > 0 && (fits || v.loud()) && !v.any(n.anyOf, x, value, seen) {
		fits = false
		v.explain(n.anyOf, x, value)
	}
	if len(n.oneOf) > 0 && (fits || v.loud()) {
		fits = v.one(n.oneOf, x, value, seen) && fits
	}
	if n.when != nil && (fits || v.loud()) {
		v.quiet++
		holds := v.within(n.when, x, value, seen)
		v.quiet--
		if next := map[bool]*node{true: n.then, false: n.other}[holds]; next != nil {
			fits = v.within(next, x, value, seen) && fits
		}
	}
	return fits
}

func (v *visit) any(of []*node, x any, value int, seen *marks) bool {
	v.quiet++
	fits := false
	for _, each := range of {
		if v.within(each, x, value, seen) {
			if fits = true; seen == nil { // else all of them tell what they evaluated
				break
			}
		}
	}
	v.quiet--
	return fits
}

func (v *visit) one(of []*node, x any, value int, seen *marks) bool {
	v.quiet++
	matched := 0
	for _, each := range of {
		if v.within(each, x, value, seen) {
			if matched++; matched > 1 {
				break
			}
		}
	}
	v.quiet--
	switch matched {
	case 0:
		v.explain(of, x, value)
		return false
	case 1:
		return true
	}
	return v.wrong("must match exactly one of the alternatives, matches several")
}

// explain notes what each of several alternatives, none of which fits, finds wrong.
func (v *visit) explain(alternatives []*node, x any, value int) {
	if !v.loud() {
		return
	}
	for _, each := range alternatives {
		v.eval(each, x, value, nil)
	}
}
