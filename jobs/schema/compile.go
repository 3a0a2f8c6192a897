package schema

import (
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// node is a subschema, prepared for evaluation: the library's result, with sets for
// lists of values, and the resource that contains the subschema.
type node struct {
	*jsonschema.Schema

	never, always bool
	types         kinds // zero: any
	integer       bool  // numbers must be whole
	enum          *set
	constant      *set // const

	ref, recursive                  *node
	dynamic                         *node
	dynamicName                     string
	resource                        *resource
	allOf, anyOf, oneOf             []*node
	not, ifNode, thenNode, elseNode *node

	properties       map[string]*node
	patternProps     []patternProperty
	additional       *node // additionalProperties; nil: any
	propertyNames    *node
	dependent        []dependency
	unevaluatedProps *node
	items            *node // items, or the items behind prefixItems
	prefixItems      []*node
	contains         *node
	unevaluatedItems *node
	pattern          *pattern.Pattern
	minimum          *bound
	maximum          *bound
	exclusiveMinimum *bound
	exclusiveMaximum *bound
	multipleOf       *bound
	allEvaluated     bool // additionalProperties evaluates all remaining members
	itemsEvaluated   bool // items evaluates all items, or all remaining items
}

// patternProperty is one entry of patternProperties.
type patternProperty struct {
	pattern *pattern.Pattern
	node    *node
}

// dependency is a requirement of dependentRequired, dependentSchemas or dependencies.
type dependency struct {
	name     string
	required []string
	node     *node
}

// resource is a schema with an $id, or a whole document. Dynamic references are resolved
// by resource.
type resource struct {
	root      *node
	recursive bool
	anchors   map[string]*node
}

// location is the URL of the schema. A relative URL would become a file name in the library.
const location = "tes:///schema"

func compile(doc any) (*node, error) {
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	c.UseRegexpEngine(regexpEngine())
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource(location, doc); err != nil {
		return nil, err
	}

	root, err := c.Compile(location)
	if err != nil {
		return nil, err
	}

	b := &builder{compiler: c, nodes: map[*jsonschema.Schema]*node{}}
	n := b.node(root)

	// Only dynamic references need to know the resources.
	if b.dynamic {
		b.resources(doc)
	}

	return n, nil
}

// builder converts the library's schemas into nodes. Each schema becomes one node.
type builder struct {
	compiler *jsonschema.Compiler
	nodes    map[*jsonschema.Schema]*node
	dynamic  bool // some node has a $dynamicRef or a $recursiveRef
}

func (b *builder) node(s *jsonschema.Schema) *node {
	if s == nil {
		return nil
	}

	if n := b.nodes[s]; n != nil {
		return n
	}

	n := &node{Schema: s}

	// Registered before its parts are built, because a part may refer to n.
	b.nodes[s] = n

	// true or false in place of a schema.
	if s.Bool != nil {
		n.always, n.never = *s.Bool, !*s.Bool
		return n
	}

	b.values(n)
	b.references(n)
	b.members(n)
	b.elements(n)
	n.allOf, n.anyOf, n.oneOf = b.list(s.AllOf), b.list(s.AnyOf), b.list(s.OneOf)
	n.not, n.ifNode, n.thenNode, n.elseNode = b.node(s.Not), b.node(s.If), b.node(s.Then), b.node(s.Else)

	return n
}

func (b *builder) list(of []*jsonschema.Schema) []*node {
	var list []*node
	for _, s := range of {
		list = append(list, b.node(s))
	}

	return list
}

func (b *builder) values(n *node) {
	if n.Types != nil && !n.Types.IsEmpty() {
		names := n.Types.ToStrings()
		for k, name := range kindNames {
			if slices.Contains(names, name) {
				n.types |= only(kind(k))
			}
		}

		// "integer" beside "number" adds nothing.
		if slices.Contains(names, "integer") && !n.types.has(number) {
			n.types |= only(number)
			n.integer = true
		}
	}

	if n.Enum != nil {
		n.enum = setOf(n.Enum.Values)
	}
	if n.Const != nil {
		n.constant = setOf([]any{*n.Const})
	}
	if n.Pattern != nil {
		n.pattern, _ = n.Pattern.(*pattern.Pattern)
	}

	// The library leaves absent keywords nil.
	for to, from := range map[**bound]*big.Rat{
		&n.minimum: n.Minimum, &n.maximum: n.Maximum, &n.exclusiveMinimum: n.ExclusiveMinimum, &n.exclusiveMaximum: n.ExclusiveMaximum, &n.multipleOf: n.MultipleOf,
	} {
		*to = boundOf(from)
	}
}

func (b *builder) references(n *node) {
	n.ref, n.recursive = b.node(n.Ref), b.node(n.RecursiveRef)
	if d := n.DynamicRef; d != nil {
		n.dynamic, n.dynamicName = b.node(d.Ref), d.Anchor
	}

	b.dynamic = b.dynamic || n.recursive != nil || n.dynamic != nil
}

func (b *builder) members(n *node) {
	n.properties = make(map[string]*node, len(n.Properties))

	for name, s := range n.Properties {
		n.properties[name] = b.node(s)
	}

	for re, s := range n.PatternProperties {
		if p, ok := re.(*pattern.Pattern); ok {
			n.patternProps = append(n.patternProps, patternProperty{p, b.node(s)})
		}
	}

	// The library's maps have no order: sorted, so that violations come in one order.
	slices.SortFunc(n.patternProps, func(x, y patternProperty) int { return strings.Compare(x.pattern.String(), y.pattern.String()) })
	n.additional = b.either(n.AdditionalProperties)
	n.allEvaluated = n.AdditionalProperties != nil
	n.propertyNames, n.unevaluatedProps = b.node(n.PropertyNames), b.node(n.UnevaluatedProperties)

	for name, d := range n.Dependencies {
		switch d := d.(type) {
		case []string:
			n.dependent = append(n.dependent, dependency{name: name, required: d})
		case *jsonschema.Schema:
			n.dependent = append(n.dependent, dependency{name: name, node: b.node(d)})
		}
	}

	for name, required := range n.DependentRequired {
		n.dependent = append(n.dependent, dependency{name: name, required: required})
	}

	for name, s := range n.DependentSchemas {
		n.dependent = append(n.dependent, dependency{name: name, node: b.node(s)})
	}

	slices.SortFunc(n.dependent, func(x, y dependency) int { return strings.Compare(x.name, y.name) })
}

// either builds the node of a keyword whose value is a boolean or a schema.
func (b *builder) either(v any) *node {
	switch v := v.(type) {
	case bool:
		return &node{Schema: &jsonschema.Schema{}, always: v, never: !v}
	case *jsonschema.Schema:
		return b.node(v)
	}

	return nil
}

func (b *builder) elements(n *node) {
	n.contains, n.unevaluatedItems = b.node(n.Contains), b.node(n.UnevaluatedItems)

	// Draft 2020-12 renamed items and additionalItems to prefixItems and items.
	if n.DraftVersion >= 2020 {
		n.prefixItems, n.items = b.list(n.PrefixItems), b.node(n.Items2020)
		n.itemsEvaluated = n.items != nil
		return
	}

	switch items := n.Items.(type) {
	case *jsonschema.Schema:
		n.items = b.node(items)
	case []*jsonschema.Schema:
		n.prefixItems, n.items = b.list(items), b.either(n.AdditionalItems)
	}

	n.itemsEvaluated = n.items != nil
}

// resources sets the resource of each node. The library does not export the resources,
// so they are derived from the locations of the $ids.
func (b *builder) resources(doc any) {
	p := &identifiers{ids: map[string]bool{"": true}, anchors: map[string][]anchor{}}
	p.collectIDs(doc, "")
	p.collectAnchors(doc, "")

	found := map[string]*resource{}

	// b.nodes grows while an anchor leads to nodes without other references.
	for done := map[*node]bool{}; len(done) < len(b.nodes); {
		for _, n := range b.nodes {
			if done[n] {
				continue
			}

			done[n] = true
			document, at := splitLocation(n.Location)
			if document == location {
				at = p.nearest(at)
			} else {
				// A published metaschema is one resource.
				at = ""
			}

			if found[document+"#"+at] == nil {
				found[document+"#"+at] = b.resource(document, at, p.anchors[at])
			}

			n.resource = found[document+"#"+at]
		}
	}
}

func (b *builder) resource(document, at string, anchors []anchor) *resource {
	r := &resource{root: b.at(document, at), anchors: map[string]*node{}}
	if r.root != nil {
		r.recursive = r.root.RecursiveAnchor
	}

	// A metaschema has one anchor, at its root.
	if document != location {
		if r.root != nil && r.root.DynamicAnchor != "" {
			r.anchors[r.root.DynamicAnchor] = r.root
		}
		return r
	}

	for _, a := range anchors {
		if n := b.at(document, a.at); n != nil {
			r.anchors[a.name] = n
		}
	}

	return r
}

// identifiers are the JSON pointers of a schema at which an $id or an anchor is declared.
type identifiers struct {
	ids     map[string]bool
	anchors map[string][]anchor // by the nearest $id at the anchor or above
}

type anchor struct{ name, at string }

func (p *identifiers) collectIDs(v any, at string) {
	each(v, at, func(m map[string]any, at string) {
		// In old drafts an $id that begins with # is an anchor.
		if id, ok := m["$id"].(string); ok && !strings.HasPrefix(id, "#") {
			p.ids[at] = true
		}
	})
}

func (p *identifiers) collectAnchors(v any, at string) {
	each(v, at, func(m map[string]any, at string) {
		if name, ok := m["$dynamicAnchor"].(string); ok {
			above := p.nearest(at)
			p.anchors[above] = append(p.anchors[above], anchor{name, at})
		}
	})
}

// nearest returns the pointer of the nearest $id at a pointer or above.
func (p *identifiers) nearest(at string) string {
	for !p.ids[at] {
		at = at[:strings.LastIndexByte(at, '/')]
	}
	return at
}

// each calls do for all objects of a document, with the pointer of each object.
func each(v any, at string, do func(m map[string]any, at string)) {
	switch v := v.(type) {
	case map[string]any:
		do(v, at)

		for name, member := range v {
			each(member, at+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), do)
		}
	case []any:
		for i, item := range v {
			each(item, at+"/"+strconv.Itoa(i), do)
		}
	}
}

// at returns the node at a pointer of a document, or nil if no schema is there.
func (b *builder) at(document, pointer string) *node {
	s, err := b.compiler.Compile(document + "#" + escape(pointer))
	if err != nil {
		return nil
	}

	return b.node(s)
}

// splitLocation splits a location into the document and the pointer within the document.
func splitLocation(location string) (document, pointer string) {
	document, fragment, _ := strings.Cut(location, "#")
	pointer, err := url.PathUnescape(fragment)
	if err != nil {
		return document, fragment
	}

	return document, pointer
}

func escape(pointer string) string {
	parts := strings.Split(pointer, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}

	return strings.Join(parts, "/")
}
