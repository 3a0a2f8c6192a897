package api_test

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

// browser asks as a browser does: with cookies, and following redirects.
type browser struct {
	*http.Client
	t    *testing.T
	base string
}

func (b *testBundle) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	return &browser{&http.Client{Jar: jar}, t, b.url}
}

func (b *browser) ask(method, path string, form url.Values, headers ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, strings.NewReader(form.Encode()))
	require.NoError(b.t, err)
	req.Header.Set("Accept", "text/html")
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := b.Do(req)
	require.NoError(b.t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(b.t, err)
	return resp, string(text)
}

func TestLogin(t *testing.T) {
	t.Parallel()
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method+" "+r.URL.Path) })
	b := setup(t, func(c *api.Config) {
		c.Mounts = []api.Mount{{Prefix: "/riverui", Handler: page, Login: &api.Login{Viewer: "tasks:metrics", Operator: "tasks:cancel"}}}
	})
	in := func(token string) url.Values { return url.Values{"token": {" " + token + "\n"}} }

	nobody := b.browser(t)
	resp, text := nobody.ask("GET", "/riverui/", nil)
	require.Equal(t, "/riverui/login", resp.Request.URL.Path)
	require.Contains(t, text, "<form")
	require.Equal(t, "DENY", resp.Header.Get("X-Frame-Options"))
	require.Contains(t, resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
	resp, _ = nobody.ask("GET", "/riverui/api/jobs", nil, "Accept", "application/json")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	resp, _ = nobody.ask("POST", "/riverui/api/jobs/cancel", nil)
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	for _, bad := range []string{"", "x", "<script>", b.auth.Token("task-worker"), b.tenant(t, monitoring, "acme")} {
		resp, text = nobody.ask("POST", "/riverui/login", in(bad))
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
		require.NotContains(t, text, "<script>")
		require.Empty(t, resp.Cookies())
	}

	viewer := b.browser(t)
	resp, text = viewer.ask("POST", "/riverui/login", in(b.auth.Token(monitoring)))
	require.Equal(t, "GET /riverui/", text)
	require.Equal(t, "DENY", resp.Header.Get("X-Frame-Options"))
	resp, _ = viewer.ask("POST", "/riverui/api/jobs/cancel", nil)
	require.Equal(t, http.StatusForbidden, resp.StatusCode)

	operator := b.browser(t)
	operator.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, _ = operator.ask("POST", "/riverui/login", in(b.auth.Token(orchestrator)))
	require.Equal(t, http.StatusSeeOther, resp.StatusCode)
	cookie := resp.Cookies()[0]
	require.True(t, cookie.HttpOnly)
	require.Equal(t, http.SameSiteStrictMode, cookie.SameSite)
	require.Equal(t, "/riverui", cookie.Path)
	_, text = operator.ask("POST", "/riverui/api/jobs/cancel", nil)
	require.Equal(t, "POST /riverui/api/jobs/cancel", text)
	resp, _ = operator.ask("POST", "/riverui/api/jobs/cancel", nil, "Sec-Fetch-Site", "cross-site")
	require.Equal(t, http.StatusForbidden, resp.StatusCode, "another site's page sent it")
	operator.ask("POST", "/riverui/logout", nil)
	resp, _ = operator.ask("POST", "/riverui/api/jobs/cancel", nil)
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	resp, _ = operator.ask("DELETE", "/riverui/login", nil)
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
}
