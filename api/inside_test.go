package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

// FuzzCursor: what is read back is what was written, and nothing else is taken.
func FuzzCursor(f *testing.F) {
	id := uuid.New()
	f.Add(cursor(id[:], "workflow", "w"), "workflow", "w")
	f.Add("", "", "")
	f.Add("AAAA", "a", "b")
	f.Add(strings.Repeat("_", 200), "", "x")
	f.Fuzz(func(t *testing.T, text, list, of string) {
		last, err := after(text, list, of)
		if err != nil {
			require.Nil(t, last)
			return
		}
		if text == "" {
			return
		}
		require.Equal(t, text, cursor(last, list, of))
		_, err = after(text, list+of, "")
		if list+of != list || of != "" {
			require.Error(t, err, "it belongs to other filters")
		}
	})
}

// FuzzProblem: whatever is said of a request, the document stays small and whole.
func FuzzProblem(f *testing.F) {
	f.Add("body.a", "expected string", 20)
	f.Add(strings.Repeat("\x00\u2028\"\\", 100), strings.Repeat("<&>", 100), 90_000)
	f.Fuzz(func(t *testing.T, location, message string, n int) {
		p := problem(422, codeValidation, message)
		for range min(max(n, 0), 40) {
			p.addViolation(location, message)
		}
		_ = p.at(&call{id: strings.Repeat("x", 64), path: "/" + strings.Repeat("y", 255)})
		w := httptest.NewRecorder()
		writeProblem(&call{ResponseWriter: w}, p)
		text := w.Body.Bytes()
		require.True(t, json.Valid(text))
		require.LessOrEqual(t, len(text), 4096)
		require.LessOrEqual(t, len(p.Errors), maxViolations)
		require.True(t, utf8.ValidString(p.Detail))
	})
}

// TestEveryRouteIsDocumented: what is reachable is in the document, and so in the
// matrix of callers, or is known to be open to all.
func TestEveryRouteIsDocumented(t *testing.T) {
	t.Parallel()
	a, err := build(Config{Mounts: []Mount{{Prefix: "/mounted", Handler: http.NotFoundHandler()}}})
	require.NoError(t, err)
	open := map[string]bool{"GET /livez": true, "GET /readyz": true, "GET /openapi.yaml": true, "GET /openapi.json": true, "GET /asyncapi.yaml": true, "GET /asyncapi.json": true}
	paths := a.huma.OpenAPI().Paths
	require.NoError(t, chi.Walk(a.router, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if open[method+" "+path] || strings.HasPrefix(path, "/mounted") {
			return nil
		}
		item := paths[path]
		require.NotNil(t, item, path)
		op := map[string]*huma.Operation{"GET": item.Get, "PUT": item.Put, "POST": item.Post}[method]
		require.NotNil(t, op, "%s %s", method, path)
		require.NotEmpty(t, op.Security)
		for _, way := range op.Security {
			require.NotEmpty(t, way[security])
		}
		return nil
	}))
}

func TestDotted(t *testing.T) {
	t.Parallel()
	for pointer, want := range map[string]string{"": "", "/a": ".a", "/items/0/price": ".items[0].price", "/a~1b/~01": ".a/b.~1", "/": "."} {
		require.Equal(t, want, dotted(pointer))
	}
}

// FuzzHeard: whatever the bus brings is read or is poison, in words that repeat
// nothing of it; and what is read has an id that the inbox can keep.
func FuzzHeard(f *testing.F) {
	c := &consumer{schemas: newEventSchemas()}
	for _, s := range subjects {
		if text, err := json.Marshal(s.payload("x")); err == nil && s.handler != "" {
			f.Add(text)
		}
	}
	f.Add([]byte(`{"id":"1","data":null,"metadata":[]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, s := range subjects {
			if s.handler == "" {
				continue
			}
			h, err := c.read(outbox.Delivery{Subject: s.address, Body: body})
			if err != nil {
				var poison *outbox.Poison
				require.ErrorAs(t, err, &poison)
				require.True(t, utf8.ValidString(poison.Reason))
				continue
			}
			require.NotEmpty(t, h.id)
			require.LessOrEqual(t, len(h.id), 255)
			var request TaskRequest
			if s.address == outbox.SubjectTaskRequested {
				_ = fillTask("data", h.data, &request)
			} else {
				require.NoError(t, h.into(reflect.New(s.data).Interface()), "%s", body)
			}
		}
	})
}

// TestUnwritableAnswer: what there is no JSON for is a 500 with a problem document, and
// nothing of the success that it was to be.
func TestUnwritableAnswer(t *testing.T) {
	t.Parallel()
	a, err := build(Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	type output struct {
		Status int
		ETag   string `header:"ETag"`
		Body   struct {
			At   time.Time       `json:"at"`
			Free json.RawMessage `json:"free,omitempty"`
		}
	}
	answers := map[string]func(*output){
		"/year":   func(o *output) { o.Body.At = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"/broken": func(o *output) { o.Body.Free = json.RawMessage("{") },
		"/good":   func(*output) {},
		"/empty":  func(o *output) { o.Status = http.StatusNoContent },
	}
	for path, fill := range answers {
		huma.Register(a.huma, huma.Operation{Method: http.MethodGet, Path: path}, func(context.Context, *struct{}) (*output, error) {
			o := &output{Status: http.StatusCreated, ETag: `"1"`}
			fill(o)
			return o, nil
		})
	}
	server := httptest.NewServer(a.Handler())
	defer server.Close()
	for path, status := range map[string]int{"/year": 500, "/broken": 500, "/good": 201, "/empty": 204} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		require.NoError(t, err)
		resp, err := server.Client().Do(req)
		require.NoError(t, err, path)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, status, resp.StatusCode, path)
		if status != 500 {
			require.Equal(t, `"1"`, resp.Header.Get("ETag"))
			continue
		}
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		require.Empty(t, resp.Header.Get("ETag"))
		var p Problem
		require.NoError(t, json.Unmarshal(text, &p), "%s", text)
		require.Equal(t, codeInternal, p.Code)
	}
}
