package integration

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"regexp"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/seed-3f7a0631/tes/jobs"
)

// SOAP "sends XML payload, receives XML response". The input is the content of the only
// element of the body, which has the name of the method, in the namespace of the definition.
// docs/integrations.md has the rules for both directions.
type soapParameters struct {
	XML    string `json:"xml"`
	Action string `json:"action,omitempty"`
}

// envelopes are the namespaces of SOAP envelopes, by version.
var envelopes = map[string]string{
	"":    "http://schemas.xmlsoap.org/soap/envelope/",
	"1.1": "http://schemas.xmlsoap.org/soap/envelope/",
	"1.2": "http://www.w3.org/2003/05/soap-envelope",
}

const instanceNamespace = "http://www.w3.org/2001/XMLSchema-instance"

// xmlName is stricter than XML: ASCII only, and no colon, which would be a prefix.
var xmlName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,127}$`)

func soapCheck(call jobs.IntegrationCall) error {
	switch {
	case call.SOAP == nil || call.SOAP.Namespace == "":
		return refuse("the type SOAP needs soap.namespace")
	case !xmlName.MatchString(call.Method):
		return refuse("the method of a SOAP integration is the name of an XML element")
	case envelopes[call.SOAP.Version] == "":
		return refuse("soap.version is 1.1 or 1.2")
	case !inXML(call.SOAP.Namespace) || !inXML(call.SOAP.Action):
		return refuse("soap contains a character that XML does not allow")
	}

	return nil
}

func soapRequest(call jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	if err := soapCheck(call); err != nil {
		return nil, err
	}

	var content map[string]any
	decoder := json.NewDecoder(bytes.NewReader(input))

	// Numbers are written as the input spells them.
	decoder.UseNumber()
	if err := decoder.Decode(&content); err != nil || content == nil {
		return nil, refuse("the content of a SOAP body is an object")
	}

	w := &envelope{order: call.SOAP.Order}
	w.WriteString(`<?xml version="1.0" encoding="UTF-8"?><soap:Envelope xmlns:soap="` + envelopes[call.SOAP.Version] + `" xmlns:xsi="` + instanceNamespace + `"><soap:Body>`)
	if err := w.element(call.Method, content, ` xmlns="`+escaped(call.SOAP.Namespace)+`"`); err != nil {
		return nil, err
	}

	w.WriteString(`</soap:Body></soap:Envelope>`)
	return parameters(soapParameters{XML: w.String(), Action: call.SOAP.Action})
}

// envelope is a SOAP envelope under construction.
type envelope struct {
	strings.Builder
	order []string
}

// element writes a member: an object as an element with content, a list as a repeated
// element, null as an element with xsi:nil. extra is added to the attributes.
func (w *envelope) element(name string, value any, extra string) error {
	if !xmlName.MatchString(name) {
		return refuse("a member of the input is not the name of an XML element")
	}

	if list, ok := value.([]any); ok {
		for _, each := range list {
			if _, nested := each.([]any); nested {
				return refuse("%s is a list in a list, which XML does not allow", name)
			}

			if err := w.element(name, each, extra); err != nil {
				return err
			}
		}

		return nil
	}

	w.WriteString("<" + name + extra)

	switch value := value.(type) {
	case nil:
		w.WriteString(` xsi:nil="true"/>`)
		return nil
	case map[string]any:
		if err := w.members(value); err != nil {
			return err
		}
	default:
		w.WriteString(">")
		if err := w.text(value); err != nil {
			return err
		}
	}

	w.WriteString("</" + name + ">")
	return nil
}

// members writes the attributes (@name), then the text (#text), then the elements.
func (w *envelope) members(object map[string]any) error {
	names := w.sorted(object)
	for _, name := range names {
		attribute, ok := strings.CutPrefix(name, "@")
		if !ok {
			continue
		}

		// Names that begin with xml are reserved, and xmlns would change the namespace.
		if !xmlName.MatchString(attribute) || strings.HasPrefix(strings.ToLower(attribute), "xml") {
			return refuse("a member of the input is not the name of an XML attribute")
		}

		w.WriteString(" " + attribute + `="`)
		if err := w.text(object[name]); err != nil {
			return err
		}

		w.WriteString(`"`)
	}

	w.WriteString(">")
	if text, ok := object["#text"]; ok {
		if err := w.text(text); err != nil {
			return err
		}
	}

	for _, name := range names {
		if name == "#text" || strings.HasPrefix(name, "@") {
			continue
		}

		if err := w.element(name, object[name], ""); err != nil {
			return err
		}
	}

	return nil
}

// sorted returns the names in the order of the definition, and the other names
// alphabetically behind: an XML sequence has an order, an object does not.
func (w *envelope) sorted(object map[string]any) []string {
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}

	rank := func(name string) int {
		if i := slices.Index(w.order, name); i >= 0 {
			return i
		}
		return len(w.order)
	}

	sort.Slice(names, func(i, j int) bool {
		if a, b := rank(names[i]), rank(names[j]); a != b {
			return a < b
		}
		return names[i] < names[j]
	})

	return names
}

func (w *envelope) text(value any) error {
	switch value := value.(type) {
	case string:
		if !inXML(value) {
			return refuse("the input contains a character that XML does not allow")
		}
		w.WriteString(escaped(value))
	case json.Number:
		w.WriteString(value.String())
	case bool:
		w.WriteString(map[bool]string{true: "true", false: "false"}[value])
	default:
		return refuse("an attribute or a text of the input is not a scalar")
	}

	return nil
}

func escaped(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder returns no error
	return b.String()
}

// inXML reports whether XML 1.0 allows every character of a text. The encoder would replace
// other characters silently.
func inXML(text string) bool {
	for _, r := range text {
		if r == utf8.RuneError || r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}

	return true
}

// soapAnswer accepts {xml}, or the XML as a string.
func soapAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	var text string

	// Not a string: an object with the member xml.
	if json.Unmarshal(data, &text) != nil {
		var in struct {
			XML *string `json:"xml"`
		}

		if err := loosely("the SOAP response", data, &in); err != nil {
			return nil, err
		}

		if in.XML == nil {
			return nil, refuse("the SOAP response has no xml")
		}

		text = *in.XML
	}

	body, err := readEnvelope(text)
	if err != nil {
		return nil, err
	}

	return parameters(body)
}
