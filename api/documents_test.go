package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"
)

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
