package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/stretchr/testify/require"
)

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
