package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// riverUI intercepts the requests of River UI's page to change jobs and queues.
type riverUI struct {
	tasks  *jobs.Tasks
	prefix string // of the mount
}

// jobAct is the request of River UI's page for an action on jobs. The page writes ids as strings;
// numbers are accepted too.
type jobAct struct {
	IDs []json.Number `json:"ids"`
}

// mostJobs is the number of jobs that River UI accepts at once.
const mostJobs = 1000

// statusOK is River UI's response to a successful action.
const statusOK = `{"status":"ok"}`

// operated applies an operator's action on jobs to the jobs' tasks, in the operator's name, and
// leaves the other jobs to River UI. Queues are paused and resumed in the operator's name too.
func (u *riverUI) operated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.pausedInUI(w, r) {
			return
		}

		// Every job of a task is changed through the task; River UI's own statements would bypass the
		// fences.
		verb, isAct := strings.CutPrefix(r.URL.Path, u.prefix+"/api/jobs/")
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

		// The calls return the jobs that belong to no task. Only these reach River UI.
		by := operatorOf(c)
		switch verb {
		case "cancel":
			err = u.tasks.Operators.CancelJobs(r.Context(), ids, by, "cancelled")
		case "delete":
			err = u.tasks.Operators.CancelJobs(r.Context(), ids, by, "deleted")
		case "retry":
			if ids, err = u.tasks.Operators.RetryJobs(r.Context(), ids, by); err == nil && len(ids) == 0 {
				doneInUI(w)
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

// pausedInUI pauses or resumes a queue if the request asks for it, in the operator's name: River's own
// statement knows only the database role. It returns false for other requests.
func (u *riverUI) pausedInUI(w http.ResponseWriter, r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, u.prefix+"/api/queues/")
	name, verb, _ := strings.Cut(rest, "/")
	if r.Method != http.MethodPut || !ok || name == "" {
		return false
	}

	c := callOf(r.Context())
	actor := jobs.Actor{Name: operatorOf(c)}
	var err error
	switch verb {
	case "pause":
		_, err = u.tasks.Pauses.PauseQueue(r.Context(), name, actor)
	case "resume":
		_, err = u.tasks.Pauses.ResumeQueue(r.Context(), name, actor)
	default:
		return false
	}
	// For River, resuming a queue that is not paused is no error.
	if err != nil && !errors.Is(err, jobs.ErrNeverPaused) {
		writeProblem(c, problemOf(r.Context(), err))
		return true
	}
	doneInUI(w)
	return true
}

// operatorOf names the operator in events and pauses; river-ui alone if the mount has no login.
func operatorOf(c *call) string {
	if c.caller == nil {
		return "river-ui"
	}
	return "river-ui:" + c.caller.Name
}

// doneInUI sends River UI's response to an action that was performed here.
func doneInUI(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = io.WriteString(w, statusOK)
}

// jobsOf reads the ids of a request, 1 to mostJobs.
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

// sent restricts the request to these jobs.
func sent(r *http.Request, ids []int64) {
	act := jobAct{IDs: make([]json.Number, len(ids))}
	for i, id := range ids {
		act.IDs[i] = json.Number(strconv.FormatInt(id, 10))
	}
	text, _ := json.Marshal(act) // cannot fail for numbers
	r.Body = io.NopCloser(bytes.NewReader(text))
	r.ContentLength = int64(len(text))
}
