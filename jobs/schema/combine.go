package schema

// dynamicReferences evaluates $recursiveRef and $dynamicRef. The outermost resource on
// the stack that has the anchor decides where the reference leads.
func (v *evaluation) dynamicReferences(n *node, x any, value int, seen *marks) bool {
	valid := true
	if to := n.recursive; to != nil {
		// Without a $recursiveAnchor at its target, $recursiveRef is a plain $ref.
		if to.RecursiveAnchor {
			for _, s := range v.stack {
				if v.charge(1); s.node.resource != nil && s.node.resource.recursive && s.node.resource.root != nil {
					to = s.node.resource.root
					break
				}
			}
		}

		valid = v.evalInPlace(to, x, value, seen)
	}

	if to := n.dynamic; to != nil && (valid || v.reporting()) {
		// Without a $dynamicAnchor at its target, $dynamicRef is a plain $ref.
		if n.dynamicName != "" && to.DynamicAnchor == n.dynamicName {
			for _, s := range v.stack {
				v.charge(1)
				if s.node.resource != nil && s.node.resource.anchors[n.dynamicName] != nil {
					to = s.node.resource.anchors[n.dynamicName]
					break
				}
			}
		}

		valid = v.evalInPlace(to, x, value, seen) && valid
	}

	return valid
}

// evalInPlace evaluates a subschema against the current value. If the value is valid,
// seen collects what the subschema evaluated.
func (v *evaluation) evalInPlace(n *node, x any, value int, seen *marks) bool {
	if seen == nil {
		return v.eval(n, x, value, nil)
	}

	// Marks of a subschema that turns out invalid must not count.
	own := &marks{}
	valid := v.eval(n, x, value, own)
	if valid {
		v.charge(seen.merge(own))
	}

	return valid
}

// combinators evaluates not, allOf, anyOf, oneOf and if.
func (v *evaluation) combinators(n *node, x any, value int, seen *marks) bool {
	valid := true
	if n.not != nil && v.evalSilently(n.not, x, value, nil) {
		valid = v.report("must not match the schema of not")
	}

	for _, each := range n.allOf {
		if !valid && !v.reporting() {
			return false
		}
		valid = v.evalInPlace(each, x, value, seen) && valid
	}

	// The branches are tried silently; only if none is valid are their violations reported.
	if len(n.anyOf) > 0 && (valid || v.reporting()) && !v.anyOf(n.anyOf, x, value, seen) {
		valid = false
		v.explain(n.anyOf, x, value)
	}

	if len(n.oneOf) > 0 && (valid || v.reporting()) {
		valid = v.oneOf(n.oneOf, x, value, seen) && valid
	}

	if n.ifNode != nil && (valid || v.reporting()) {
		v.silent++
		holds := v.evalInPlace(n.ifNode, x, value, seen)
		v.silent--

		// if never fails by itself: it selects then or else.
		if next := map[bool]*node{true: n.thenNode, false: n.elseNode}[holds]; next != nil {
			valid = v.evalInPlace(next, x, value, seen) && valid
		}
	}

	return valid
}

func (v *evaluation) anyOf(of []*node, x any, value int, seen *marks) bool {
	v.silent++
	valid := false
	for _, each := range of {
		if v.evalInPlace(each, x, value, seen) {
			// With seen, all branches are evaluated: each valid branch adds to seen.
			if valid = true; seen == nil {
				break
			}
		}
	}

	v.silent--
	return valid
}

func (v *evaluation) oneOf(of []*node, x any, value int, seen *marks) bool {
	v.silent++
	matched := 0
	for _, each := range of {
		if v.evalInPlace(each, x, value, seen) {
			// A third match would change nothing.
			if matched++; matched > 1 {
				break
			}
		}
	}

	v.silent--

	switch matched {
	case 0:
		v.explain(of, x, value)
		return false
	case 1:
		return true
	}

	return v.report("must match exactly one of the alternatives, matches several")
}

// explain collects the violations of all alternatives of which none is valid.
func (v *evaluation) explain(alternatives []*node, x any, value int) {
	if !v.reporting() {
		return
	}

	for _, each := range alternatives {
		v.eval(each, x, value, nil)
	}
}
