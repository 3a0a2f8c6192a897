package api

import (
	"context"
	"net/http"
	"time"
)

// readyTime is how long the answer to "are you ready" may take.
const readyTime = 2 * time.Second

// livez says that the process runs, and nothing else: an orchestrator that kills
// on it must not kill for a database that is away.
func (a *API) livez(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/livez"
	writeText(w, "application/json", []byte(`{"status":"ok"}`+"\n"))
}

// readyz says whether requests should be sent here.
func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	c.route = "/readyz"
	ctx, cancel := context.WithTimeout(r.Context(), readyTime)
	defer cancel()
	if err := a.cfg.Ready(ctx); err != nil {
		writeProblem(c, unavailable("not ready").because(err))
		return
	}
	writeText(w, "application/json", []byte(`{"status":"ok"}`+"\n"))
}

func (a *API) openapiYAML(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/openapi.yaml"
	writeText(w, "application/openapi+yaml", a.yaml)
}

func (a *API) openapiJSON(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/openapi.json"
	writeText(w, "application/openapi+json", a.json)
}

func writeText(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body)
}
