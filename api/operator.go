package api

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// jobAct is what River UI's page sends to act on jobs. It writes ids as strings, and
// reads numbers too.
type jobAct struct {
	IDs []json.Number `json:"ids"`
}

// mostJobs is how many jobs River UI takes at once.
const mostJobs = 1000

// operated does to the tasks what an operator asks of their jobs, in the operator's
// name, and lets River UI do the rest: what is cancelled by then is no task's any more.
func (a *API) operated(m Mount, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		verb, isAct := strings.CutPrefix(r.URL.Path, m.Prefix+"/api/jobs/")
		if r.Method != http.MethodPost || !isAct {
			next.ServeHTTP(w, r)
			return
		}
		c := callOf(r.Context())
		ids, err := jobsOf(r)
		if err != nil {
			writeProblem(c, problem(http.StatusUnprocessableEntity, codeValidation, "ids must list 1 to "+strconv.Itoa(mostJobs)+" jobs").because(err))
			return
		}
		by := "river-ui"
		if c.caller != nil {
			by += ":" + c.caller.Name
		}
		switch verb {
		case "cancel":
			err = a.cfg.Tasks.CancelJobs(r.Context(), ids, by, "cancelled")
		case "delete":
			err = a.cfg.Tasks.CancelJobs(r.Context(), ids, by, "deleted")
		case "retry":
			if ids, err = a.cfg.Tasks.RetryJobs(r.Context(), ids, by); err == nil && len(ids) == 0 {
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				_, _ = io.WriteString(w, `{"status":"ok"}`)
				return
			}
		}
		if err != nil {
			writeProblem(c, problemOf(r.Context(), err))
			return
		}
		sent(r, ids)
		next.ServeHTTP(w, r)
	})
}

func jobsOf(r *http.Request) ([]int64, error) {
	var act jobAct
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10)).Decode(&act); err != nil {
		return nil, err
	}
	if len(act.IDs) == 0 || len(act.IDs) > mostJobs {
		return nil, strconv.ErrRange
	}
	ids := make([]int64, len(act.IDs))
	for i, text := range act.IDs {
		id, err := text.Int64()
		if err != nil {
			return nil, err
		}
		ids[i] = id
	}
	return ids, nil
}

// sent makes the request one about these jobs.
func sent(r *http.Request, ids []int64) {
	act := jobAct{IDs: make([]json.Number, len(ids))}
	for i, id := range ids {
		act.IDs[i] = json.Number(strconv.FormatInt(id, 10))
	}
	text, _ := json.Marshal(act) // numbers only
	r.Body = io.NopCloser(bytes.NewReader(text))
	r.ContentLength = int64(len(text))
}
