package api_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHostileBodies: whatever is sent, the answer is a small refusal.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	around := func(input string) string {
		return `{"taskDefinitionId":"x","workflowId":"w","taskType":"AUTOMATED","executionConfig":{"executor":"noop"},"input":` + input + `}`
	}
	many := func(n int, format string) string {
		var s strings.Builder
		for i := range n {
			if i > 0 {
				s.WriteByte(',')
			}
			fmt.Fprintf(&s, format, i)
		}
		return s.String()
	}
	bad := map[string]struct {
		body   string
		status int
		code   string
	}{
		"a byte too many":        {around(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`), 413, "PAYLOAD_TOO_LARGE"},
		"deep":                   {around(strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)), 400, "VALIDATION_ERROR"},
		"very deep":              {strings.Repeat("[", 500_000), 400, "VALIDATION_ERROR"},
		"a number without end":   {around(`{"a":` + strings.Repeat("9", 100_000) + `}`), 400, "VALIDATION_ERROR"},
		"1e400":                  {around(`{"a":1e400}`), 400, "VALIDATION_ERROR"},
		"numbers that grow":      {around(`{"a":[` + many(3000, "1e30%d") + `]}`), 400, "VALIDATION_ERROR"},
		"NUL":                    {around(`{"a":"\u0000"}`), 400, "VALIDATION_ERROR"},
		"NUL in a name":          {around(`{"\u0000":1}`), 400, "VALIDATION_ERROR"},
		"NUL, plain":             {around("{\"a\":\"\x00\"}"), 400, "VALIDATION_ERROR"},
		"a lone surrogate":       {around(`{"a":"\ud800"}`), 400, "VALIDATION_ERROR"},
		"no UTF-8":               {around("{\"a\":\"\xff\"}"), 400, "VALIDATION_ERROR"},
		"names twice":            {around(`{"a":1,"a":2}`), 400, "VALIDATION_ERROR"},
		"two values":             {around(`{}`) + around(`{}`), 400, "VALIDATION_ERROR"},
		"byte order mark":        {"\xef\xbb\xbf" + around(`{}`), 400, "VALIDATION_ERROR"},
		"nothing but space":      {"   ", 400, "VALIDATION_ERROR"},
		"null":                   {"null", 422, "VALIDATION_ERROR"},
		"a list":                 {"[]", 422, "VALIDATION_ERROR"},
		"a text":                 {`"SUPERSECRET"`, 422, "VALIDATION_ERROR"},
		"unknown members":        {`{` + many(40_000, `"SUPERSECRET%d":1`) + `}`, 422, "VALIDATION_ERROR"},
		"unknown, long names":    {`{` + many(300, `"`+strings.Repeat("SUPERSECRET", 300)+`%d":1`) + `}`, 422, "VALIDATION_ERROR"},
		"unknown, odd names":     {`{` + many(300, `"`+strings.Repeat(`\u0001\u2028\"\\<`, 20)+`%d":1`) + `}`, 422, "VALIDATION_ERROR"},
		"a long value":           {merged(around(`{}`), `"priority":"`+strings.Repeat("SUPERSECRET", 50_000)+`"`), 422, "VALIDATION_ERROR"},
		"a number for an int":    {merged(strings.Replace(around(`{}`), `"noop"`, `"noop","timeout":1.5e-3`, 1), `"reference":"x"`), 422, "VALIDATION_ERROR"},
		"a number past int64":    {strings.Replace(around(`{}`), `"noop"`, `"noop","timeout":99999999999999999999`, 1), 422, "VALIDATION_ERROR"},
		"a value in a wrong url": {merged(around(`{}`), `"callbackUrl":"http://SUPERSECRET:%zz@[/"`), 422, "VALIDATION_ERROR"},
	}
	b.unchanged(t, func() {
		for name, c := range bad {
			start := time.Now()
			r := b.ask(t, orchestrator, "POST", tasksPath, c.body)
			require.Equal(t, c.status, r.status, "%s: %s", name, r.body)
			if c.status >= 400 {
				r.fails(t, c.status, c.code)
				if !strings.HasPrefix(name, "unknown") {
					require.NotContains(t, string(r.body), "SUPERSECRET", name)
				}
			}
			require.Less(t, time.Since(start), 10*time.Second, name)
		}
	})
}

// merged puts one more member into a document.
func merged(doc, member string) string { return doc[:len(doc)-1] + "," + member + "}" }

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, ct := range []string{"application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON"} {
		b.ask(t, orchestrator, "POST", tasksPath, noop(), "Content-Type", ct).is(t, 201)
	}
	before := b.digest(t)
	for _, ct := range []string{"", "text/plain", "application/cbor", "application/problem+json", "application/json; charset=latin1", "application/x-www-form-urlencoded", "application/json, text/html", ";"} {
		b.ask(t, orchestrator, "POST", tasksPath, noop(), "Content-Type", ct).fails(t, 415, "UNSUPPORTED_MEDIA_TYPE")
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := io.WriteString(w, strings.Repeat(" ", 10<<20))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b.ask(t, orchestrator, "POST", tasksPath, zipped.Bytes(), "Content-Encoding", "gzip").fails(t, 415, "UNSUPPORTED_MEDIA_TYPE")
	b.ask(t, orchestrator, "POST", tasksPath, nil).fails(t, 400, "VALIDATION_ERROR")
	b.ask(t, orchestrator, "GET", definitionsPath, nil, "Accept", "text/html").is(t, 200)
	require.Equal(t, before, b.digest(t))
}

// TestEndlessBody: a body of no announced length is cut off at the limit.
func TestEndlessBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.unchanged(t, func() {
		r := b.ask(t, orchestrator, "POST", tasksPath, io.MultiReader(strings.NewReader(`{"a":"`), io.LimitReader(letters{}, 2<<20)))
		r.fails(t, 413, "PAYLOAD_TOO_LARGE")
	})
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestStrangersSendNothing: who is not let in is answered before sending a body.
func TestStrangersSendNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "http://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST "+tasksPath+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	require.NoError(t, err)
	line := make([]byte, len("HTTP/1.1 401"))
	_, err = io.ReadFull(conn, line)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 401", string(line))
}

// TestHostileTimes: a time that could not be written as RFC 3339 once it is in UTC stopped
// every publication, and every list in which its task stood.
func TestHostileTimes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, task := b.create(t, manual())
	b.unchanged(t, func() {
		for _, at := range []string{"9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59Z", "9000-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2000-01-01T00:00:00+00:01"} {
			body := manual(object{"dueDate": at})
			p := b.ask(t, orchestrator, "POST", tasksPath, body).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.dueDate"}, violations(p), at)
			results := b.ask(t, orchestrator, "POST", tasksPath+"/batch", object{"tasks": []any{body}}).is(t, 200)["results"].([]any)
			details := results[0].(object)["error"].(object)["details"].(object)
			require.Equal(t, "body.dueDate", details["errors"].([]any)[0].(object)["location"], at)
			p = b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane", "dueDate": at}).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.dueDate"}, violations(p), at)
			p = b.ask(t, errorHandler, "GET", "/api/internal/dead-letters?since="+url.QueryEscape(at), nil).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"query.since"}, violations(p), at)
			p = b.ask(t, errorHandler, "POST", "/api/internal/dead-letters/redrive", object{"filter": object{"since": at}, "reason": "x"}).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.filter.since"}, violations(p), at)
		}
	})
	got := b.ask(t, ui, "GET", tasksPath+"/workflow/wf-1", nil).is(t, 200)
	require.Equal(t, []any{task}, got["items"])
	b.create(t, manual(object{"dueDate": "8999-12-31T23:59:59Z"}))
	require.Equal(t, "8999-12-31T23:59:59Z", b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane", "dueDate": "9000-01-01T13:59:59+14:00"}).is(t, 200)["dueDate"])
}
