package api

import (
	"bytes"
	"html/template"
	"io"
	"net/http"
	"strings"

	"github.com/seed-3f7a0631/tes/api/auth"
)

// Login configures the login of people with a browser. They log in with a service token, which is kept
// in a cookie that no script can read and no other site can send.
type Login struct {
	// Viewer is the scope for reading, Operator the scope for reading and acting.
	Viewer, Operator string
	// ViewerStyle is a style sheet for viewers. It hides the controls of the actions that the server
	// refuses to viewers anyway. Default: none.
	ViewerStyle string
}

const (
	sessionCookie = "tes_session"
	maxLoginForm  = 16 << 10
)

var loginPage = template.Must(template.New("login").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>tes: log in</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem}textarea{width:100%;font:13px monospace}button{font:inherit;padding:.4rem 1.2rem}.wrong{color:#b00020}</style>
<h1>tes</h1>
{{if .Wrong}}<p class="wrong">{{.Wrong}}</p>{{end}}
<form method="post" action="{{.Action}}"><p><label for="token">A service token of the Auth Service. The scope <code>{{.Viewer}}</code> permits reading, <code>{{.Operator}}</code> reading and acting.</label></p>
<p><textarea id="token" name="token" rows="6" required autofocus autocomplete="off" spellcheck="false"></textarea></p><p><button>Log in</button></p></form></html>
`))

// browserLogin serves the login of a mount, and guards its pages.
type browserLogin struct {
	gate  *gate
	mount Mount // Login is set
}

// required lets only logged-in callers through: viewers to read, operators to do everything.
func (l *browserLogin) required(next http.Handler) http.Handler {
	login, logout := l.mount.Prefix+"/login", l.mount.Prefix+"/logout"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case login:
			l.logIn(w, r)
			return
		case logout:
			http.SetCookie(w, session(r, l.mount, ""))
			http.Redirect(w, r, login, http.StatusSeeOther)
			return
		}

		c := callOf(r.Context())
		caller, err := l.session(c, r)
		if p, ok := asProblem(err); ok {
			writeProblem(c, p)
			return
		}

		switch {
		case err != nil && !auth.IsInvalid(err):
			writeProblem(c, unavailable("tokens cannot be verified yet").because(err))
		// Pages redirect to the login. The page's own requests get a 401, which a redirect would hide.
		case err != nil && r.Method == http.MethodGet && !strings.HasPrefix(r.URL.Path, l.mount.Prefix+"/api/"):
			http.Redirect(w, r, login, http.StatusSeeOther)
		case err != nil:
			writeProblem(c, problem(http.StatusUnauthorized, codeUnauthorized, "log in at "+login).with("WWW-Authenticate", `Bearer realm="tes"`))
		case !l.mount.Login.allows(caller, r.Method):
			c.caller, c.refused = caller, "not allowed"
			writeProblem(c, problem(http.StatusForbidden, codeForbidden, "this token permits reading only: acting requires the scope "+l.mount.Login.Operator))
		default:
			c.caller = caller
			l.mount.Login.serve(w, r, caller, next)
		}
	})
}

// serve serves the page, with the style sheet for viewers if the caller is one.
func (l *Login) serve(w http.ResponseWriter, r *http.Request, caller *auth.Caller, next http.Handler) {
	if l.ViewerStyle == "" {
		next.ServeHTTP(w, r)
		return
	}

	page := &styledPage{ResponseWriter: w}
	if !l.allows(caller, http.MethodPost) {
		page.style = l.ViewerStyle
		// A part of the page would come without its head.
		r.Header.Del("Range")
	}
	next.ServeHTTP(page, r)
	page.flush()
}

// styledPage is a response writer that puts a style sheet into the head of HTML pages. HTML is kept
// until the page is complete; other responses are passed on. HTML differs between callers, so browsers
// must not store it: a viewer could get an operator's page from the cache, or the reverse.
type styledPage struct {
	http.ResponseWriter
	style string // empty: none

	html   *bytes.Buffer // nil: the response is no HTML
	headed bool          // WriteHeader was called
}

// WriteHeader decides by the content type whether the response is kept.
func (p *styledPage) WriteHeader(status int) {
	if header := p.Header(); !p.headed && strings.HasPrefix(header.Get("Content-Type"), "text/html") {
		header.Set("Cache-Control", "no-store")
		if p.style != "" {
			// The page grows by the style sheet.
			header.Del("Content-Length")
			p.html = &bytes.Buffer{}
		}
	}
	p.headed = true
	p.ResponseWriter.WriteHeader(status)
}

// Write keeps HTML, and passes other responses on.
func (p *styledPage) Write(b []byte) (int, error) {
	if !p.headed {
		p.WriteHeader(http.StatusOK)
	}
	if p.html != nil {
		return p.html.Write(b)
	}
	return p.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (p *styledPage) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// flush sends the kept page. A page without a head stays as it is.
func (p *styledPage) flush() {
	if p.html == nil || p.html.Len() == 0 {
		return
	}
	page := strings.Replace(p.html.String(), "</head>", "<style>"+p.style+"</style></head>", 1)
	_, _ = io.WriteString(p.ResponseWriter, page)
}

// allows returns whether a caller may send a request with this method. A tenant's token permits
// nothing: the page shows the jobs of all tenants.
func (l *Login) allows(c *auth.Caller, method string) bool {
	if c.Tenant != "" {
		return false
	}
	if method == http.MethodGet || method == http.MethodHead {
		return c.Holds(l.Viewer) || c.Holds(l.Operator)
	}
	return c.Holds(l.Operator)
}

// session returns the caller that the Authorization header names or, without one, the cookie.
func (l *browserLogin) session(c *call, r *http.Request) (*auth.Caller, error) {
	token, ok := bearer(r)
	if cookie, err := r.Cookie(sessionCookie); !ok && err == nil {
		token, ok = cookie.Value, true
	}
	if !ok {
		return nil, auth.InvalidToken("no token")
	}
	return l.gate.verify(c, r, token)
}

// logIn shows the login form, and checks a submitted token.
func (l *browserLogin) logIn(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	wrong := ""
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxLoginForm)
		token := strings.TrimSpace(r.PostFormValue("token"))
		caller, err := l.gate.verify(c, r, token)
		if p, ok := asProblem(err); ok {
			writeProblem(c, p)
			return
		}
		switch {
		case err == nil && l.mount.Login.allows(caller, http.MethodGet):
			c.caller = caller
			http.SetCookie(w, session(r, l.mount, token))
			http.Redirect(w, r, l.mount.Prefix+"/", http.StatusSeeOther)
			return
		case err == nil:
			c.refused, wrong = "not allowed", "This token has neither scope, or belongs to a tenant."
		case auth.IsInvalid(err):
			c.refused, wrong = "invalid token", "This token is not valid, or has expired."
		default:
			writeProblem(c, unavailable("tokens cannot be verified yet").because(err))
			return
		}
	default:
		writeProblem(c, problem(http.StatusMethodNotAllowed, codeMethod, "the path accepts GET, POST").with("Allow", "GET, POST"))
		return
	}

	// The page has no script and loads no resource, so the policy can forbid both. Other sites may not
	// frame the form.
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	if wrong != "" {
		w.WriteHeader(http.StatusUnauthorized)
	}
	_ = loginPage.Execute(w, map[string]string{
		"Wrong": wrong, "Action": l.mount.Prefix + "/login", "Viewer": l.mount.Login.Viewer, "Operator": l.mount.Login.Operator,
	})
}

// session returns the cookie that holds a token. An empty token deletes the cookie. The cookie ends with
// the browser's session; the token in it expires by itself.
func session(r *http.Request, m Mount, token string) *http.Cookie {
	// Not Secure over plain HTTP, because the browser would not send the cookie back. X-Forwarded-Proto
	// may be forged by the client, which would only lose its own cookie.
	cookie := &http.Cookie{ //nolint:gosec // Secure depends on the connection
		Name: sessionCookie, Value: token, Path: m.Prefix, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	}
	if token == "" {
		cookie.MaxAge = -1
	}
	return cookie
}

// unframed forbids other sites to show a page in a frame, where clicks can be stolen.
func unframed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Frame-Options", "DENY")
		w.Header().Set("Content-Security-Policy", "frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}
