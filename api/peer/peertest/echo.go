package peertest

import (
	"encoding/json"
	"encoding/xml"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// echo is the response to an unknown method: the parameters, and a result of the type that the
// parameters suggest.
func echo(parameters json.RawMessage, id uuid.UUID) map[string]any {
	if parameters == nil {
		parameters = json.RawMessage("{}")
	}

	data := map[string]any{"echo": parameters}
	var members map[string]json.RawMessage
	if json.Unmarshal(parameters, &members) != nil {
		return data
	}

	has := func(names ...string) bool {
		return slices.Equal(slices.Sorted(maps.Keys(members)), names)
	}

	switch {
	case has("xml"), has("action", "xml"):
		var text string
		if json.Unmarshal(members["xml"], &text) == nil {
			data["xml"] = soapEcho(text)
		}
	case has("operation", "parameters"), has("parameters", "query"):
		rows := []json.RawMessage{}
		if p := members["parameters"]; len(p) > 2 && p[0] == '{' {
			rows = append(rows, p)
		}
		data["rows"], data["rowCount"] = rows, len(rows)
	case has("destination", "message"), has("destination", "headers", "message"):
		data["acknowledged"], data["messageId"] = true, id
	case has("destination", "operation", "source"):
		data["status"], data["bytes"], data["reference"] = "COMPLETED", 4096, members["destination"]
	case has("operation", "source"):
		data["status"] = "COMPLETED"
	}
	return data
}

// soapEcho returns an envelope with the same content, in an element named after the request's.
func soapEcho(text string) string {
	var envelope struct {
		Body struct {
			Content struct {
				XMLName xml.Name
				Inner   string `xml:",innerxml"`
			} `xml:",any"`
		} `xml:"Body"`
	}

	if err := xml.NewDecoder(strings.NewReader(text)).Decode(&envelope); err != nil {
		return `<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body><soap:Fault>` +
			`<faultcode>soap:Client</faultcode><faultstring>the envelope cannot be read</faultstring></soap:Fault></soap:Body></soap:Envelope>`
	}

	c := envelope.Body.Content
	name := c.XMLName.Local + "Response"
	return `<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soap:Body><` +
		name + ">" + c.Inner + "</" + name + "></soap:Body></soap:Envelope>"
}
