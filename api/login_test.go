package api_test

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

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

// Who may only look is shown no controls that act; who may act is. Neither page is kept by
// the browser, which would show it to who logs in next.
func TestViewersPageHidesWhatActs(t *testing.T) {
	t.Parallel()
	const text = "<!doctype html><html><head><title>x</title></head><body>y</body></html>"
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := "text/html; charset=utf-8"
		if strings.HasSuffix(r.URL.Path, ".js") {
			kind = "text/javascript"
		}
		w.Header().Set("Content-Type", kind)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	})
	const style = "button{display:none}"
	b := setup(t, func(c *api.Config) {
		c.Mounts = []api.Mount{{Prefix: "/riverui", Handler: page, Login: &api.Login{Viewer: "tasks:metrics", Operator: "tasks:cancel", ViewerStyle: style}}}
	})
	get := func(service, path string, headers ...string) (*http.Response, string) {
		return b.browser(t).ask("GET", path, nil, append(headers, "Authorization", "Bearer "+b.auth.Token(service))...)
	}
	resp, got := get(monitoring, "/riverui/queues", "Range", "bytes=0-9")
	require.Equal(t, strings.Replace(text, "</head>", "<style>"+style+"</style></head>", 1), got)
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
	resp, got = get(orchestrator, "/riverui/queues")
	require.Equal(t, text, got)
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
	for _, service := range []string{monitoring, orchestrator} {
		resp, got = get(service, "/riverui/assets/main.js")
		require.Equal(t, text, got)
		require.Empty(t, resp.Header.Get("Cache-Control"))
		require.EqualValues(t, len(text), resp.ContentLength)
	}
	resp, _ = b.browser(t).ask("HEAD", "/riverui/", nil, "Authorization", "Bearer "+b.auth.Token(monitoring))
	require.Equal(t, http.StatusOK, resp.StatusCode)
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
