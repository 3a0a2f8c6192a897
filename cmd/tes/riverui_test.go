package main

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/jobs"
)

// TestRiverUIHasTheHooks holds what viewerStyle goes by against the script of the River UI
// that is built in: every button that acts on jobs comes from the one function with the two
// classes, and the buttons that pause and resume queues have their titles.
func TestRiverUIHasTheHooks(t *testing.T) {
	t.Parallel()
	client, err := jobs.NewRiver(dbtest.Get(t), "p1", slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	s := &service{log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		for _, stop := range s.closers {
			_ = stop(context.Background())
		}
	})
	handler, err := s.riverUI(t.Context(), client)
	require.NoError(t, err)
	get := func(path string) string {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", "/riverui"+path, nil))
		require.Equal(t, 200, w.Code, path)
		return w.Body.String()
	}

	page := get("/")
	require.Equal(t, 1, strings.Count(page, "</head>"), "the style sheet goes before it")
	script := regexp.MustCompile(`<script type="module" src="/riverui([^"]+)"`).FindStringSubmatch(page)
	require.NotNil(t, script)
	code := get(script[1])

	// The function that makes buttons in a group, by its classes.
	group := regexp.MustCompile("function (\\w+)\\([^`]*`rounded-none first:rounded-l-md last:rounded-r-md`").FindStringSubmatch(code)
	require.NotNil(t, group, "the buttons of jobs have other classes")
	require.Equal(t, 1, strings.Count(code, "first:rounded-l-md last:rounded-r-md"))
	acting := regexp.MustCompile(`\)\((\w+),\{[^{}]*(?:\{[^{}]*\})?[^{}]*text:`+"`(Retry|Cancel|Delete)`").FindAllStringSubmatch(code, -1)
	require.Len(t, acting, 6, "three buttons for one job and three for several")
	for _, button := range acting {
		require.Equal(t, group[1], button[1], "%s is another kind of button", button[2])
	}
	require.Len(t, regexp.MustCompile("title:[^,]{1,20}\\?`Resume`:`Pause`").FindAllString(code, -1), 2, "the list of queues has a button, and the page of a queue")
}
