package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
)

// huma reads the first value of each parameter and treats an empty value as absent. These guards
// refuse requests that would lose a value in this way.

// guardParams runs before huma reads headers and the query.
func guardParams(ctx huma.Context, next func(huma.Context)) {
	r, _ := humachi.Unwrap(ctx)
	p := guardHeaders(r)
	if p == nil {
		p = guardQuery(r.URL, ctx.Operation().Parameters)
	}

	if p != nil {
		writeProblem(callOf(r.Context()), p)
		return
	}

	next(ctx)
}

// guardHeaders refuses empty headers of a write: without its condition, its key or its person it
// would be a different write. If-Match is a list, and may be split over several header lines.
func guardHeaders(r *http.Request) *Problem {
	if reads(r.Method) {
		return nil
	}

	for _, name := range []string{"If-Match", keyHeader, "X-User-Token"} {
		values, given := r.Header[name]
		if !given {
			continue
		}
		// huma reads the first line only, which would weaken or change the condition.
		if name == "If-Match" && len(values) > 1 {
			values = []string{strings.Join(values, ", ")}
			r.Header[name] = values
		}
		switch {
		case len(values) > 1:
			return violation("header."+name, fmt.Sprintf("is given %d times, but accepts one value", len(values)))
		case len(values) == 0 || strings.TrimSpace(values[0]) == "":
			return violation("header."+name, "is empty: send a value, or leave the header out")
		}
	}

	return nil
}

// guardQuery refuses repeated parameters that take one value. A list takes several values: as
// repeated parameters or separated by commas, as the document says.
func guardQuery(u *url.URL, params []*huma.Param) *Problem {
	if u.RawQuery == "" {
		return nil
	}

	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return violation("query", "cannot be parsed: percent-encode characters other than letters and digits")
	}

	// Unknown parameters are refused by huma: RejectUnknownQueryParameters.
	changed := false
	for _, p := range params {
		values := query[p.Name]
		if p.In != "query" || len(values) == 0 {
			continue
		}
		list := p.Schema != nil && p.Schema.Type == huma.TypeArray
		each := list && p.Explode != nil && *p.Explode
		switch {
		case len(values) > 1 && !list:
			return violation("query."+p.Name, fmt.Sprintf("is given %d times, but accepts one value", len(values)))
		case len(values) > 1 && hasBlank(values):
			return violation("query."+p.Name, "has an empty value")
		case len(values) > 1 && !each:
			// huma reads the first value of a list that is not exploded.
			query[p.Name], changed = []string{strings.Join(values, ",")}, true
		case p.Schema != nil && p.Schema.Format == "date-time":
			if moment := momentText(values[0]); moment != values[0] {
				query[p.Name], changed = []string{moment}, true
			}
		}
	}

	if changed {
		u.RawQuery = query.Encode()
	}
	return nil
}

func hasBlank(values []string) bool {
	for _, v := range values {
		if strings.TrimSpace(v) == "" {
			return true
		}
	}
	return false
}

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// headAsGet handles HEAD like GET. net/http drops the body.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			path := r.URL.RawPath
			if path == "" {
				path = r.URL.Path
			}
			// A route registered for HEAD itself, as mounts have, keeps its method.
			route := chi.RouteContext(r.Context())
			if !route.Routes.Match(chi.NewRouteContext(), http.MethodHead, path) {
				route.RouteMethod = http.MethodGet
			}
		}

		next.ServeHTTP(w, r)
	})
}
