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

// node is a subschema, made ready: what the library found, with sets for lists and
// the resource in which it stands.
type node struct {
	*jsonschema.Schema

	never, always bool
	types         kinds // none: any
	integer       bool  // numbers must be whole
	allowed       *set  // enum
	only          *set  // const

	ref, recursive         *node
	dynamic                *node
	dynamicName            string
	resource               *resource
	allOf, anyOf, oneOf    []*node
	not, when, then, other *node

	properties     map[string]*node
	named          []named
	additional     *node // nil: any
	propertyNames  *node
	dependent      []dependency
	unevaluated    *node // members
	rest           *node // items, or those behind prefix
	prefix         []*node
	contains       *node
	restItems      *node // unevaluatedItems
	pattern        *pattern.Pattern
	minimum        *bound
	maximum        *bound
	above          *bound
	below          *bound
	multiple       *bound
	allEvaluated   bool // of the members: additionalProperties looks at the rest
	itemsEvaluated bool // items look at all, or at the rest
}

// named is one of patternProperties.
type named struct {
	pattern *pattern.Pattern
	node    *node
}

// dependency is what the presence of one member asks for.
type dependency struct {
	name     string
	required []string
	node     *node
}

// resource is a schema with an $id of its own, or a whole document. Dynamic
// references are resolved by resources.
type resource struct {
	root      *node
	recursive bool
	anchors   map[string]*node
}

// location must be absolute, else the library makes a file name of it.
const location = "tes:///schema"

func compile(doc any) (*node, error) {
	c := jsonschema.NewCompiler()
	c.UseLoader(refuse{})
	c.UseRegexpEngine(engine())
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
	if b.dynamic {
		b.resources(doc)
	}
	return n, nil
}

// builder turns the library's schemas into nodes, each once.
type builder struct {
	compiler *jsonschema.Compiler
	nodes    map[*jsonschema.Schema]*node
	dynamic  bool // there is a reference that the way to it decides
}

func (b *builder) node(s *jsonschema.Schema) *node {
	if s == nil {
		return nil
	}
	if n := b.nodes[s]; n != nil {
		return n
	}
	n := &node{Schema: s}
	b.nodes[s] = n // before its parts, which may refer to it
	if s.Bool != nil {
		n.always, n.never = *s.Bool, !*s.Bool
		return n
	}
	b.values(n)
	b.references(n)
	b.members(n)
	b.elements(n)
	n.allOf, n.anyOf, n.oneOf = b.list(s.AllOf), b.list(s.AnyOf), b.list(s.OneOf)
	n.not, n.when, n.then, n.other = b.node(s.Not), b.node(s.If), b.node(s.Then), b.node(s.Else)
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
		if slices.Contains(names, "integer") && !n.types.has(number) {
			n.types |= only(number)
			n.integer = true
		}
	}
	if n.Enum != nil {
		n.allowed = setOf(n.Enum.Values)
	}
	if n.Const != nil {
		n.only = setOf([]any{*n.Const})
	}
	if n.Pattern != nil {
		n.pattern, _ = n.Pattern.(*pattern.Pattern)
	}
	for to, from := range map[**bound]*big.Rat{
		&n.minimum: n.Minimum, &n.maximum: n.Maximum, &n.above: n.ExclusiveMinimum, &n.below: n.ExclusiveMaximum, &n.multiple: n.MultipleOf,
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
			n.named = append(n.named, named{p, b.node(s)})
		}
	}
	slices.SortFunc(n.named, func(x, y named) int { return strings.Compare(x.pattern.String(), y.pattern.String()) })
	n.additional = b.either(n.AdditionalProperties)
	n.allEvaluated = n.AdditionalProperties != nil
	n.propertyNames, n.unevaluated = b.node(n.PropertyNames), b.node(n.UnevaluatedProperties)

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

// either is a keyword that is a boolean or a schema.
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
	n.contains, n.restItems = b.node(n.Contains), b.node(n.UnevaluatedItems)
	if n.DraftVersion >= 2020 {
		n.prefix, n.rest = b.list(n.PrefixItems), b.node(n.Items2020)
		n.itemsEvaluated = n.rest != nil
		return
	}
	switch items := n.Items.(type) {
	case *jsonschema.Schema:
		n.rest = b.node(items)
	case []*jsonschema.Schema:
		n.prefix, n.rest = b.list(items), b.either(n.AdditionalItems)
	}
	n.itemsEvaluated = n.rest != nil
}

// resources finds for each node the resource in which it stands. The library keeps
// that to itself, so it is worked out of the places of the $ids.
func (b *builder) resources(doc any) {
	p := &places{ids: map[string]bool{"": true}, anchors: map[string][]anchor{}}
	p.ofIDs(doc, "")
	p.ofAnchors(doc, "")

	found := map[string]*resource{}
	// An anchor may lead to nodes that nothing else did.
	for done := map[*node]bool{}; len(done) < len(b.nodes); {
		for _, n := range b.nodes {
			if done[n] {
				continue
			}
			done[n] = true
			document, at := place(n.Location)
			if document == location {
				at = p.nearest(at)
			} else {
				at = "" // a published metaschema is one resource
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

// places are the pointers of a schema at which something is named.
type places struct {
	ids     map[string]bool
	anchors map[string][]anchor // by the $id that is nearest above
}

type anchor struct{ name, at string }

func (p *places) ofIDs(v any, at string) {
	each(v, at, func(m map[string]any, at string) {
		if id, ok := m["$id"].(string); ok && !strings.HasPrefix(id, "#") {
			p.ids[at] = true
		}
	})
}

func (p *places) ofAnchors(v any, at string) {
	each(v, at, func(m map[string]any, at string) {
		if name, ok := m["$dynamicAnchor"].(string); ok {
			above := p.nearest(at)
			p.anchors[above] = append(p.anchors[above], anchor{name, at})
		}
	})
}

// nearest is the $id at a pointer or above it.
func (p *places) nearest(at string) string {
	for !p.ids[at] {
		at = at[:strings.LastIndexByte(at, '/')]
	}
	return at
}

// each calls do for all objects of a document with their pointers.
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

// at is the node at a pointer of a document, or nil if there is no schema.
func (b *builder) at(document, pointer string) *node {
	s, err := b.compiler.Compile(document + "#" + escape(pointer))
	if err != nil {
		return nil
	}
	return b.node(s)
}

// place splits a location into its document and the pointer into that.
func place(location string) (document, pointer string) {
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
