package integration

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// The limits of a response. The output must also pass jsonguard, which allows 64 levels.
const (
	maxXML      = 1 << 20
	maxXMLDepth = 48
)

// node is an element under construction.
type node struct {
	name     xml.Name
	members  map[string]any // attributes (@name) and elements; a list for a repeated element
	text     strings.Builder
	isNil    bool
	children int
}

// value returns the element as JSON: a string for an element with only text, else an object.
// Prefixes and namespaces are dropped.
func (n *node) value() any {
	switch {
	case n.isNil:
		return nil
	case len(n.members) == 0:
		return n.text.String()
	}

	// White space between elements is not content.
	if text := strings.TrimSpace(n.text.String()); text != "" {
		n.members["#text"] = text
	}

	return n.members
}

func (n *node) add(name string, value any) {
	n.children++
	switch before := n.members[name].(type) {
	case nil:
		// A nil value may be a missing member, or a member that is null.
		if _, found := n.members[name]; !found {
			n.members[name] = value
			return
		}

		n.members[name] = []any{nil, value}
	case []any:
		n.members[name] = append(before, value)
	default:
		n.members[name] = []any{before, value}
	}
}

// readXML parses one document. Document types, and entities other than the five of XML, are
// rejected, because they could load other documents.
func readXML(text string) (*node, error) {
	if len(text) > maxXML {
		return nil, errors.New("longer than 1 MiB")
	}

	// The decoder is strict, and accepts only UTF-8.
	decoder := xml.NewDecoder(strings.NewReader(text))
	var open []*node
	var root *node
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}

		if err != nil {
			// Without err, which may quote the document.
			return nil, errors.New("not well-formed")
		}

		switch token := token.(type) {
		case xml.Directive:
			return nil, errors.New("has a document type")
		case xml.StartElement:
			if root != nil && len(open) == 0 || len(open) == maxXMLDepth {
				return nil, errors.New("has two roots, or is too deep")
			}

			n := &node{name: token.Name, members: map[string]any{}}
			for _, a := range token.Attr {
				switch {
				case a.Name.Space == "xmlns" || a.Name.Local == "xmlns":
				case a.Name.Space == instanceNamespace && a.Name.Local == "nil":
					n.isNil = a.Value == "true" || a.Value == "1"
				default:
					n.members["@"+a.Name.Local] = a.Value
				}
			}

			if root == nil {
				root = n
			}

			open = append(open, n)
		case xml.EndElement:
			n := open[len(open)-1]
			open = open[:len(open)-1]
			if len(open) > 0 {
				open[len(open)-1].add(n.name.Local, n.value())
			}
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].text.Write(token)
			}
		}
	}

	if root == nil {
		return nil, errors.New("empty")
	}

	return root, nil
}

// readEnvelope returns the content of the only element in the body of a SOAP response. A
// fault is a failure; a fault of the sender has the code VALIDATION_ERROR.
func readEnvelope(text string) (map[string]any, error) {
	root, err := readXML(text)
	if err != nil {
		return nil, refuse("the SOAP response cannot be read: %v", err)
	}

	if root.name.Local != "Envelope" || !slices.Contains([]string{envelopes["1.1"], envelopes["1.2"]}, root.name.Space) {
		return nil, refuse("the SOAP response is not an envelope")
	}

	var body map[string]any

	switch found := root.members["Body"].(type) {
	case map[string]any:
		body = found
	case string:
		// An empty body.
		if strings.TrimSpace(found) == "" {
			return map[string]any{}, nil
		}
	}

	var names []string

	// Attributes of the body do not count.
	for name := range body {
		if !strings.HasPrefix(name, "@") {
			names = append(names, name)
		}
	}

	if len(names) != 1 {
		return nil, refuse("the body of the SOAP response does not have one element")
	}
	if names[0] == "Fault" {
		return nil, faultOf(body["Fault"])
	}

	switch content := body[names[0]].(type) {
	case map[string]any:
		return content, nil
	case string:
		if strings.TrimSpace(content) == "" {
			return map[string]any{}, nil
		}
		return map[string]any{names[0]: content}, nil
	case nil:
		return map[string]any{}, nil
	}

	return nil, refuse("the body of the SOAP response does not have one element")
}

// faultOf parses a fault of SOAP 1.1 (faultcode, faultstring) or 1.2 (Code, Reason).
func faultOf(fault any) error {
	find := func(path ...string) string {
		v := fault
		for _, name := range path {
			object, ok := v.(map[string]any)
			if !ok {
				return ""
			}
			v = object[name]
		}

		if object, ok := v.(map[string]any); ok {
			v = object["#text"]
		}

		text, _ := v.(string)
		return strings.TrimSpace(text)
	}

	code := find("faultcode") + find("Code", "Value")

	// The code is a qualified name; the prefix depends on the sender.
	if _, local, ok := strings.Cut(code, ":"); ok {
		code = local
	}

	reason := find("faultstring") + find("Reason", "Text")
	if reason == "" {
		reason = "the service answered with a fault without a reason"
	}

	no := false
	f := &jobs.Failure{Code: "INTEGRATION_ERROR", Message: reason, Retryable: &no}

	// The request was wrong: Client in SOAP 1.1, Sender in SOAP 1.2.
	if strings.HasPrefix(code, "Client") || code == "Sender" {
		f.Code = "VALIDATION_ERROR"
	}
	if len(f.Message) > maxFault {
		f.Message = strings.ToValidUTF8(f.Message[:maxFault], "")
	}

	return f
}

// maxFault is the maximum length of a fault's text in tables and events.
const maxFault = 4 << 10
