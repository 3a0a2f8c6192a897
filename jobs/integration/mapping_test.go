package integration_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

var soapCall = jobs.IntegrationCall{Type: "SOAP", Method: "AddInvoice", Instance: "books", SOAP: &jobs.SOAPCall{
	Namespace: "urn:books", Action: "urn:books/AddInvoice", Order: []string{"customer", "line"},
}}

const soapHead = `<?xml version="1.0" encoding="UTF-8"?><soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soap:Body>`

func inEnvelope(body string) string {
	return `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><s:Header/><s:Body>` + body + `</s:Body></s:Envelope>`
}

func quoted(text string) string {
	out, _ := json.Marshal(text)
	return string(out)
}

// table is the interface document's "Integration Types": what is sent for an input, and
// what an answer becomes. An empty want is a failure of shape, for good.
var table = []struct {
	IntegrationType, Interaction string
	call                         jobs.IntegrationCall
	requests, answers            map[string]string
}{
	{
		"REST API", "Sends request parameters, receives response data",
		jobs.IntegrationCall{Type: "REST", Method: "m", Instance: "i"},
		map[string]string{
			`{"contact_id": 7, "lines": [1.50]}`: `{"contact_id": 7, "lines": [1.50]}`,
			`{"body": {"a": 1}}`:                 `{"body": {"a": 1}}`,
			`{}`:                                 `{}`,
			`{"path": "/x", "to": "somebody"}`:   `{"path": "/x", "to": "somebody"}`,
			`{"path": "/invoices/7", "query": {"full": true, "page": 2, "tag": ["a", 1]}, "headers": {"X-Trace": "t"}, "body": [1.50]}`: `{"path": "/invoices/7", "query": {"full": "true", "page": "2", "tag": ["a", "1"]}, "headers": {"X-Trace": "t"}, "body": [1.50]}`,
			`{"path": 7}`:                                     ``,
			`{"path": "invoices"}`:                            ``,
			`{"path": "//evil.example"}`:                      ``,
			`{"path": "/a/%2e%2E/b"}`:                         ``,
			`{"path": "/a?b"}`:                                ``,
			`{"query": {"a": {"b": 1}}}`:                      ``,
			`{"query": {"a": null}}`:                          ``,
			`{"headers": {"X-A": "b\r\nX-C: d"}}`:             ``,
			`{"headers": {"X A": "b"}}`:                       ``,
			`{"headers": {"Authorization": "Bearer abc"}}`:    ``,
			`{"headers": {"X-Api-Key": "abc"}, "path": "/a"}`: ``,
		},
		map[string]string{`{"id": 1.50}`: `{"id": 1.50}`, `[1]`: `{"data": [1]}`, `"x"`: `{"data": "x"}`},
	},
	{
		"SOAP", "Sends XML payload, receives XML response", soapCall,
		map[string]string{
			`{"z": 1.50, "line": [{"@no": 1, "#text": "a<b"}, {"@no": 2}], "customer": {"name": "Ann & Co", "vip": true}, "note": null, "none": []}`: `{"action": "urn:books/AddInvoice", "xml": ` + quoted(soapHead+
				`<AddInvoice xmlns="urn:books"><customer><name>Ann &amp; Co</name><vip>true</vip></customer><line no="1">a&lt;b</line><line no="2"></line><note xsi:nil="true"/><z>1.50</z></AddInvoice></soap:Body></soap:Envelope>`) + `}`,
			`{}`:                  `{"action": "urn:books/AddInvoice", "xml": ` + quoted(soapHead+`<AddInvoice xmlns="urn:books"></AddInvoice></soap:Body></soap:Envelope>`) + `}`,
			`{"a b": 1}`:          ``,
			`{"a><b": 1}`:         ``,
			`{"x:a": 1}`:          ``,
			`{"@xmlns": "urn:x"}`: ``,
			`{"@a": {"b": 1}}`:    ``,
			`{"a": [[1]]}`:        ``,
			`{"a": "\u0001"}`:     ``,
			`{"a": "\ufffe"}`:     ``,
		},
		map[string]string{
			`{"xml": ` + quoted(inEnvelope(`<m:R xmlns:m="urn:b"><m:id v="1">7</m:id><line>a</line><line>b</line><empty/><no xsi:nil="true"/></m:R>`)) + `}`: `{"id": {"@v": "1", "#text": "7"}, "line": ["a", "b"], "empty": "", "no": null}`,
			quoted(inEnvelope(`<R/>`)):                                          `{}`,
			quoted(inEnvelope(``)):                                              `{}`,
			quoted(inEnvelope(`<R>7</R>`)):                                      `{"R": "7"}`,
			quoted(inEnvelope(`<R><a>&lt;&#65;<![CDATA[<b>]]></a></R>`)):        `{"a": "<A<b>"}`,
			quoted(inEnvelope(`<R/><S/>`)):                                      ``,
			quoted(`<!DOCTYPE a [<!ENTITY e "x">]>` + inEnvelope(`<R>&e;</R>`)): ``,
			quoted(inEnvelope(`<R>&e;</R>`)):                                    ``,
			quoted(`<Envelope><Body><R/></Body></Envelope>`):                    ``,
			quoted(`<a>`): ``,
			quoted(`<?xml version="1.0" encoding="EBCDIC"?>` + inEnvelope(`<R/>`)): ``,
			`""`:           ``,
			`{"xml": 7}`:   ``,
			`{"rows": []}`: ``,
			`[1]`:          ``,
		},
	},
	{
		"Database", "Sends query parameters, receives result sets",
		jobs.IntegrationCall{Type: "DATABASE", Method: "open_orders", Instance: "i"},
		map[string]string{
			`{"query": "SELECT 1 WHERE a = :a", "parameters": {"a": 1.50}}`: `{"query": "SELECT 1 WHERE a = :a", "parameters": {"a": 1.50}}`,
			`{"operation": "close", "parameters": [1, null]}`:               `{"operation": "close", "parameters": [1, null]}`,
			`{"parameters": {"customer": 7}}`:                               `{"operation": "open_orders", "parameters": {"customer": 7}}`,
			`{}`:                                                            `{"operation": "open_orders", "parameters": {}}`,
			`{"query": "a", "operation": "b"}`:                              ``,
			`{"query": 7}`:                                                  ``,
			`{"parameters": "7"}`:                                           ``,
			`{"customer": 7}`:                                               ``,
		},
		map[string]string{
			`{"rows": [{"id": 1.50}], "rowCount": 1}`:         `{"rows": [{"id": 1.50}], "rowCount": 1}`,
			`{"rows": [[1, "a"]], "columns": ["id", "name"]}`: `{"rows": [[1, "a"]], "rowCount": 1, "columns": ["id", "name"]}`,
			`[{"id": 1}, {"id": 2}]`:                          `{"rows": [{"id": 1}, {"id": 2}], "rowCount": 2}`,
			`{"rowCount": 3}`:                                 `{"rows": [], "rowCount": 3}`,
			`{"rows": [], "cursor": "c"}`:                     `{"rows": [], "rowCount": 0, "cursor": "c"}`,
			`{}`:                                              ``,
			`{"rows": {}}`:                                    ``,
			`{"rows": [1]}`:                                   ``,
			`{"rows": [null]}`:                                ``,
			`{"rows": [[1]], "columns": ["a", "b"]}`:          ``,
			`{"rows": [], "rowCount": -1}`:                    ``,
			`"done"`:                                          ``,
		},
	},
	{
		"Message Queue", "Sends messages, receives acknowledgments",
		jobs.IntegrationCall{Type: "MESSAGE_QUEUE", Method: "publish", Instance: "i"},
		map[string]string{
			`{"destination": "orders", "message": {"n": 1.50}, "headers": {"type": "order"}}`: `{"destination": "orders", "message": {"n": 1.50}, "headers": {"type": "order"}}`,
			`{"destination": "orders", "message": "text"}`:                                    `{"destination": "orders", "message": "text"}`,
			`{"message": "text"}`:                                     ``,
			`{"destination": "orders"}`:                               ``,
			`{"destination": "orders", "message": null}`:              ``,
			`{"destination": 1, "message": 1}`:                        ``,
			`{"destination": "o", "message": 1, "headers": {"a": 1}}`: ``,
			`{"destination": "o", "message": 1, "key": 1}`:            ``,
		},
		map[string]string{
			`{"acknowledged": true, "messageId": "m-1", "partition": 3}`: `{"acknowledged": true, "messageId": "m-1", "partition": 3}`,
			`{"messageId": "m-1"}`:    ``,
			`{"acknowledged": "yes"}`: ``,
			`true`:                    ``,
		},
	},
	{
		"File Transfer", "Sends file data, receives transfer status",
		jobs.IntegrationCall{Type: "FILE_TRANSFER", Method: "transfer", Instance: "i"},
		map[string]string{
			`{"operation": "upload", "source": "s3://bucket/a.pdf", "destination": "sftp://host/in/a.pdf"}`:  `{"operation": "UPLOAD", "source": "s3://bucket/a.pdf", "destination": "sftp://host/in/a.pdf"}`,
			`{"operation": "DELETE", "source": "a.pdf"}`:                                                     `{"operation": "DELETE", "source": "a.pdf"}`,
			`{"operation": "DELETE", "source": "a", "destination": "b"}`:                                     ``,
			`{"operation": "COPY", "source": "a"}`:                                                           ``,
			`{"operation": "CHMOD", "source": "a", "destination": "b"}`:                                      ``,
			`{"operation": "COPY", "source": "", "destination": "b"}`:                                        ``,
			`{"operation": "COPY", "source": "data:text/plain;base64,aGk=", "destination": "b"}`:             ``,
			`{"operation": "COPY", "source": "sftp://u:p@host/a", "destination": "b"}`:                       ``,
			`{"operation": "COPY", "source": "https://b.example/a?X-Amz-Signature=abc", "destination": "b"}`: ``,
			`{"operation": "COPY", "source": "a\nb", "destination": "b"}`:                                    ``,
			`{"operation": "COPY", "source": "a", "destination": "b", "content": "aGk="}`:                    ``,
		},
		map[string]string{
			`{"status": "COMPLETED", "bytes": 4096, "reference": "s3://b/a", "checksum": "sha256:0"}`: `{"status": "COMPLETED", "bytes": 4096, "reference": "s3://b/a", "checksum": "sha256:0"}`,
			`{"status": "QUEUED"}`:                                    `{"status": "QUEUED"}`,
			`{"bytes": 1}`:                                            ``,
			`{"status": "COMPLETED", "bytes": -1}`:                    ``,
			`{"status": "COMPLETED", "bytes": 1.5}`:                   ``,
			`{"status": "COMPLETED", "reference": "https://u:p@h/a"}`: ``,
			`"COMPLETED"`:                                             ``,
		},
	},
	{
		"Custom", "Sends custom parameters, receives custom responses",
		jobs.IntegrationCall{Type: "CUSTOM", Method: "m", Instance: "i"},
		map[string]string{`{"xml": 1, "path": 2, "any": [1.50]}`: `{"xml": 1, "path": 2, "any": [1.50]}`},
		map[string]string{`{"any": 1.50}`: `{"any": 1.50}`, `null`: `{"data": null}`},
	},
}

func TestTableOfIntegrationTypes(t *testing.T) {
	t.Parallel()
	for _, row := range table {
		t.Run(row.IntegrationType+": "+row.Interaction, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, integration.Check(row.call))
			for input, want := range row.requests {
				b := setup(t)
				b.asks(row.call, input)
				_, err := b.Execute(t.Context(), b.job)
				if want == "" {
					requireShape(t, err, input)
					require.Empty(t, b.service.asked, input)
					continue
				}
				if err != nil { // of the answer, which is none
					requireShape(t, err, input)
				}
				require.JSONEq(t, want, string(b.service.call.Parameters), input)
				require.NoError(t, jsonguard.Check(b.service.call.Parameters))
			}
			for data, want := range row.answers {
				got, err := integration.ResponseMapper{}.Output(row.call, json.RawMessage(data))
				if want == "" {
					requireShape(t, err, data)
					continue
				}
				require.NoError(t, err, data)
				require.JSONEq(t, want, string(got), data)
				require.NoError(t, jsonguard.Check(got))
			}
		})
	}
}

func requireShape(t *testing.T, err error, about string) {
	t.Helper()
	var f *jobs.Failure
	require.ErrorAs(t, err, &f, about)
	require.Equal(t, "VALIDATION_ERROR", f.Code, about)
	require.False(t, *f.Retryable, about)
}

// What the far end says is no matter of shape.
func TestAnswersThatAreFailures(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		call      jobs.IntegrationCall
		data      string
		code      string
		message   string
		retryable bool
	}{
		"SOAP fault of ours":   {soapCall, quoted(inEnvelope(`<s:Fault><faultcode>s:Client</faultcode><faultstring>no such customer</faultstring></s:Fault>`)), "VALIDATION_ERROR", "no such customer", false},
		"SOAP fault of theirs": {soapCall, quoted(inEnvelope(`<s:Fault><faultcode>s:Server</faultcode><faultstring>Basic c2VjcmV0LWNhbmFyeQ== refused</faultstring></s:Fault>`)), "INTEGRATION_ERROR", "Basic [redacted] refused", false},
		"SOAP 1.2 fault":       {soapCall, quoted(`<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Body><s:Fault><s:Code><s:Value>s:Sender</s:Value></s:Code><s:Reason><s:Text xml:lang="en">bad</s:Text></s:Reason></s:Fault></s:Body></s:Envelope>`), "VALIDATION_ERROR", "bad", false},
		"a message not taken":  {jobs.IntegrationCall{Type: "MESSAGE_QUEUE"}, `{"acknowledged": false}`, "INTEGRATION_ERROR", "the message was not acknowledged", true},
		"a transfer failed":    {jobs.IntegrationCall{Type: "FILE_TRANSFER"}, `{"status": "FAILED", "password": "x"}`, "INTEGRATION_ERROR", "the transfer failed", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := integration.ResponseMapper{}.Output(tc.call, json.RawMessage(tc.data))
			var f *jobs.Failure
			require.ErrorAs(t, err, &f)
			require.Equal(t, tc.code, f.Code)
			require.Equal(t, tc.message, f.Message)
			require.Equal(t, tc.retryable, *f.Retryable)
			require.NotContains(t, string(f.Details), `"x"`)
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := jobs.IntegrationCall{Method: "m", Instance: "i"}
	for name, tc := range map[string]struct {
		change func(*jobs.IntegrationCall)
		ok     bool
	}{
		"nothing special":                    {func(*jobs.IntegrationCall) {}, true},
		"unknown type":                       {func(c *jobs.IntegrationCall) { c.Type = "FTP" }, false},
		"a reference":                        {func(c *jobs.IntegrationCall) { c.CredentialRef = "vault:books/main#1" }, true},
		"a name":                             {func(c *jobs.IntegrationCall) { c.CredentialRef = "cred-books_2" }, true},
		"a JWT":                              {func(c *jobs.IntegrationCall) { c.CredentialRef = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.abc" }, false},
		"a key":                              {func(c *jobs.IntegrationCall) { c.CredentialRef = "AKIAIOSFODNN7EXAMPLE" }, false},
		"a header":                           {func(c *jobs.IntegrationCall) { c.CredentialRef = "Bearer abcdef" }, false},
		"a password":                         {func(c *jobs.IntegrationCall) { c.CredentialRef = "user:p@ss=word" }, false},
		"base64":                             {func(c *jobs.IntegrationCall) { c.CredentialRef = "c2VjcmV0LWNhbmFyeQ==" }, false},
		"soap for REST":                      {func(c *jobs.IntegrationCall) { c.SOAP = soapCall.SOAP }, false},
		"SOAP without":                       {func(c *jobs.IntegrationCall) { c.Type = "SOAP" }, false},
		"SOAP with a method that is no name": {func(c *jobs.IntegrationCall) { *c = soapCall; c.Method = "add invoice" }, false},
		"SOAP 2":                             {func(c *jobs.IntegrationCall) { *c = soapCall; c.SOAP = &jobs.SOAPCall{Namespace: "n", Version: "2"} }, false},
	} {
		call := good
		tc.change(&call)
		err := integration.Check(call)
		require.Equal(t, tc.ok, err == nil, "%s: %v", name, err)
		if err != nil && call.CredentialRef != "" {
			require.NotContains(t, err.Error(), call.CredentialRef)
		}
	}
}

// A connection is asked about before its first use, and the answer is gone by for a
// while.
func TestConnection(t *testing.T) {
	t.Parallel()
	no := false
	for name, tc := range map[string]struct {
		status    string
		err       error
		invoked   bool
		outage    bool
		questions int // for two attempts
	}{
		"connected":         {"CONNECTED", nil, true, false, 1},
		"active":            {"active", nil, true, false, 1},
		"down":              {"DISCONNECTED", nil, false, true, 1},
		"unknown":           {"", &jobs.Failure{Code: "NOT_FOUND", Message: "who?", Retryable: &no}, false, false, 1},
		"no answer":         {"", &jobs.Outage{PeerService: "integration", Err: errors.New("refused")}, true, false, 2},
		"no such question":  {"", &jobs.Failure{Code: "INTEGRATION_ERROR", Message: "404", Retryable: &no}, true, false, 2},
		"an answer of none": {"", nil, true, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.service.connection, b.service.unknown = tc.status, tc.err
			for range 2 {
				_, err := b.Execute(t.Context(), b.job)
				switch {
				case tc.invoked:
					require.NoError(t, err)
				case tc.outage:
					var away *jobs.Outage
					require.ErrorAs(t, err, &away)
				default:
					requireShape(t, err, name)
				}
			}
			require.Equal(t, tc.invoked, b.service.asked != "")
			require.Equal(t, tc.questions, b.service.questions)
			b.job.Config.Integration.Connection = "another"
			_, _ = b.Execute(t.Context(), b.job)
			require.Equal(t, tc.questions+1, b.service.questions)
		})
	}
}

func TestAnswersKeepNoSecrets(t *testing.T) {
	t.Parallel()
	call := jobs.IntegrationCall{Type: "CUSTOM"}
	for data, want := range map[string]string{
		`{"id": 1.50, "credential": {"user": "u", "pass": "canary"}}`:                      `{"id": 1.50, "credential": "[redacted]"}`,
		`{"a": [{"Set-Cookie": "canary"}], "headers": {"Authorization": "Bearer canary"}}`: `{"a": [{"Set-Cookie": "[redacted]"}], "headers": {"Authorization": "[redacted]"}}`,
		`[{"api_key": "canary"}]`:                         `{"data": [{"api_key": "[redacted]"}]}`,
		`{"password": null, "token": "page-2", "n": 1e2}`: `{"password": null, "token": "page-2", "n": 1e2}`,
	} {
		got, err := integration.ResponseMapper{}.Output(call, json.RawMessage(data))
		require.NoError(t, err)
		require.JSONEq(t, want, string(got))
	}
	clean := `{"b": 1.50, "a": [ 1 ]}`
	got, err := integration.ResponseMapper{}.Output(call, json.RawMessage(clean))
	require.NoError(t, err)
	require.Equal(t, clean, string(got), "to the byte")

	for said, want := range map[string]string{
		"401 for Authorization: Bearer abc.def-ghi_jkl":          "401 for Authorization: Bearer [redacted]",
		"cannot reach https://user:hunter2@db.example/x":         "cannot reach https://[redacted]@db.example/x",
		"password=hunter2; retry":                                "password=[redacted]; retry",
		`{"api_key": "hunter2"}`:                                 `{"api_key": "[redacted]"}`,
		"token eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.sig is stale": "token [redacted] is stale",
		"basic understanding of the bearer":                      "basic understanding of the bearer",
		"contact CONT-REJECTED may not be invoiced":              "contact CONT-REJECTED may not be invoiced",
	} {
		f := integration.ResponseMapper{}.Failure(&jobs.Failure{Code: "C", Message: said, Details: json.RawMessage(`{"secret": "s"}`)})
		require.Equal(t, want, f.Message)
		require.JSONEq(t, `{"secret": "[redacted]"}`, string(f.Details))
	}
}

// Whatever comes as XML, it ends in JSON that may be kept, or in a failure.
func FuzzSOAPAnswer(f *testing.F) {
	for data := range table[1].answers {
		f.Add(data)
	}
	f.Add(quoted(inEnvelope(`<R a="1" a="2"><b>x<c/>y</b></R>`)))
	f.Fuzz(func(t *testing.T, text string) {
		for _, data := range []string{text, quoted(text), quoted(inEnvelope(text))} {
			if jsonguard.Check([]byte(data)) != nil {
				continue
			}
			got, err := integration.ResponseMapper{}.Output(soapCall, json.RawMessage(data))
			if err != nil {
				var failure *jobs.Failure
				require.ErrorAs(t, err, &failure)
				continue
			}
			require.NoError(t, jsonguard.Check(got))
			require.Equal(t, byte('{'), got[0])
		}
	})
}

// Whatever is sent as XML is well-formed, and the far end reads one element in it.
func FuzzSOAPRequest(f *testing.F) {
	for input := range table[1].requests {
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input string) {
		if jsonguard.Check([]byte(input)) != nil {
			return
		}
		b := setup(t)
		b.asks(soapCall, input)
		_, err := b.Execute(t.Context(), b.job)
		if b.service.asked == "" {
			require.Error(t, err)
			return
		}
		var sent struct{ XML string }
		require.NoError(t, json.Unmarshal(b.service.call.Parameters, &sent))
		_, err = integration.ResponseMapper{}.Output(soapCall, json.RawMessage(quoted(sent.XML)))
		var failure *jobs.Failure
		if errors.As(err, &failure) { // deeper than we would read it, or long
			require.Contains(t, failure.Message, "it is ")
		}
	})
}
