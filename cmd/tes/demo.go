package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

//go:embed data/definitions.json data/requests.json
var demoData embed.FS

// demoTime is how long the demo's tasks may take in all; they take two seconds.
const demoTime = time.Minute

// demoCmd shows a newcomer the whole way of a task.
type demoCmd struct {
	JSON bool `name:"json" help:"Print the final table as JSON, and nothing else."`
}

// demoRequest is one entry of requests.json: a request, and what must become of it.
type demoRequest struct {
	body   map[string]any
	expect struct {
		Status   string         `json:"status"`
		Output   map[string]any `json:"output"`
		Assignee string         `json:"assignee"`
		Error    *struct {
			Code string `json:"code"`
		} `json:"error"`
	}
}

// demoTask is one task on its way.
type demoTask struct {
	Definition string  `json:"task"`
	ID         string  `json:"taskId"`
	Lane       string  `json:"lane"`
	Attempts   int     `json:"attempts"`
	Status     string  `json:"status"`
	Seconds    float64 `json:"seconds"`
	Events     int     `json:"events"`
	Wrong      string  `json:"wrong,omitempty"` // what was expected and did not come
}

// demo is one run.
type demo struct {
	s     *shell
	l     *local
	quiet bool
	color bool
	begun time.Time

	mu     sync.Mutex
	names  map[string]string   // what each task is called; guarded by mu
	events map[string][]string // subjects heard of each task, in order; guarded by mu
	heard  chan struct{}       // holds one: something was heard
}

// Run exits without an error only if every expectation held.
func (c *demoCmd) Run(s *shell) (err error) {
	d := &demo{
		s: s, quiet: c.JSON, color: terminal(s.stdout) && !c.JSON,
		names: map[string]string{}, events: map[string][]string{}, heard: make(chan struct{}, 1),
	}
	d.say("Starting PostgreSQL, the bus, the service and its neighbours in a throw-away directory …\n")
	d.begun = time.Now()
	s.cfg.TLSCert, s.cfg.TLSKey, s.cfg.TLSClientCA = "", "", "" // the demo calls its own service, at an address of loopback
	d.l, err = startLocal(s, localConfig{dataDir: s.cfg.DataDir, throwaway: true, http: "127.0.0.1:0", nats: "127.0.0.1:0", owner: "tes demo"})
	if err != nil {
		return err
	}
	defer func() { err = join(err, d.l.stop(context.WithoutCancel(s.ctx))) }()
	d.say("Ready after %.1f s: %s\n\n", time.Since(d.begun).Seconds(), d.l.service.url)
	d.begun = time.Now()

	ctx, cancel := context.WithTimeout(s.ctx, demoTime)
	defer cancel()
	listening, deaf := context.WithCancel(ctx)
	var ears sync.WaitGroup
	ears.Go(func() { _ = d.l.bus.Subscribe(listening, "task.>", natsbus.All, d.hear) })
	defer ears.Wait()
	defer deaf()

	tasks, err := d.play(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(s, tasks)
	} else {
		d.table(tasks)
	}
	for _, task := range tasks {
		if task.Wrong != "" {
			err = join(err, fmt.Errorf("%s: %s", task.Definition, task.Wrong))
		}
	}
	return err
}

// play registers the definitions, submits the requests and sees each to its end.
func (d *demo) play(ctx context.Context) ([]*demoTask, error) {
	if err := d.register(ctx); err != nil {
		return nil, err
	}
	requests, err := readRequests()
	if err != nil {
		return nil, err
	}
	var tasks []*demoTask
	steered := false
	for _, request := range requests {
		invoice := request.body["taskDefinitionId"] == "create-invoice" && request.expect.Status == "COMPLETED"
		if invoice && !steered {
			steered = true
			d.l.standins.Steer(peertest.Integration, peertest.Steering{
				Mode: peertest.ModeError, Status: 503, Times: 1,
				Body: json.RawMessage(`{"error": {"code": "SERVICE_UNAVAILABLE", "message": "the accounting system is being restarted"}, "retryable": true}`),
			})
		}
		task, err := d.submit(ctx, request)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
		if invoice {
			d.until(ctx, func() bool {
				return d.count(task.ID, outbox.SubjectRetry)+d.count(task.ID, outbox.SubjectCompleted)+d.count(task.ID, outbox.SubjectFailed) > 0
			})
			if d.count(task.ID, outbox.SubjectRetry) == 0 {
				task.Wrong = "the first call was refused, and no task.retry came"
			}
		}
	}
	for i, request := range requests {
		if err := d.follow(ctx, request, tasks[i]); err != nil {
			tasks[i].Wrong = err.Error()
		}
	}
	return tasks, nil
}

func (d *demo) register(ctx context.Context) error {
	raw, err := demoData.ReadFile("data/definitions.json")
	if err != nil {
		return err
	}
	var definitions []map[string]any
	if err := json.Unmarshal(raw, &definitions); err != nil {
		return fmt.Errorf("definitions.json: %w", err)
	}
	for _, def := range definitions {
		if _, err := d.call(ctx, http.MethodPut, fmt.Sprintf("/api/internal/task-definitions/%v", def["id"]), def); err != nil {
			return err
		}
	}
	d.say("%d task definitions registered.\n\n", len(definitions))
	return nil
}

func readRequests() ([]demoRequest, error) {
	raw, err := demoData.ReadFile("data/requests.json")
	if err != nil {
		return nil, err
	}
	var bodies []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &bodies); err != nil {
		return nil, fmt.Errorf("requests.json: %w", err)
	}
	out := make([]demoRequest, len(bodies))
	for i, body := range bodies {
		if err := json.Unmarshal(body["expect"], &out[i].expect); err != nil {
			return nil, fmt.Errorf("requests.json, entry %d: %w", i, err)
		}
		delete(body, "expect")
		out[i].body = map[string]any{}
		for name, value := range body {
			out[i].body[name] = value
		}
		var id string
		if err := json.Unmarshal(body["taskDefinitionId"], &id); err != nil {
			return nil, fmt.Errorf("requests.json, entry %d: %w", i, err)
		}
		out[i].body["taskDefinitionId"] = id
	}
	return out, nil
}

func (d *demo) submit(ctx context.Context, request demoRequest) (*demoTask, error) {
	name := fmt.Sprint(request.body["taskDefinitionId"])
	task := &demoTask{Definition: name}
	answer, err := d.call(ctx, http.MethodPost, "/api/internal/tasks", request.body)
	if err != nil {
		return nil, err
	}
	task.ID = fmt.Sprint(answer["taskId"])
	d.mu.Lock()
	d.names[task.ID] = name
	d.mu.Unlock()
	return task, nil
}

// follow waits until a task is where it is expected, checks it, and plays the
// person where one is needed.
func (d *demo) follow(ctx context.Context, request demoRequest, task *demoTask) error {
	var now map[string]any
	var err error
	reached := d.until(ctx, func() bool {
		now, err = d.call(ctx, http.MethodGet, "/api/internal/tasks/"+task.ID, nil)
		return err == nil && (now["status"] == request.expect.Status || terminalStatus(now["status"]))
	})
	if err != nil {
		return err
	}
	task.note(now)
	if task.Wrong != "" {
		return nil
	}
	if !reached || now["status"] != request.expect.Status {
		task.Wrong = fmt.Sprintf("expected %s, it is %v (error: %v)", request.expect.Status, now["status"], now["error"])
		return nil
	}
	if wrong := request.check(now); wrong != "" {
		task.Wrong = wrong
		return nil
	}
	if now["status"] == "ASSIGNED" {
		if now, err = d.person(ctx, task, now); err != nil {
			return err
		}
		task.note(now)
	}
	d.checkEvents(ctx, request, task)
	return nil
}

// checkEvents holds what was heard on the bus against the task's end.
func (d *demo) checkEvents(ctx context.Context, request demoRequest, task *demoTask) {
	last := outbox.SubjectCompleted
	if request.expect.Status == "FAILED" {
		last = outbox.SubjectFailed
	}
	if !d.until(ctx, func() bool { return d.count(task.ID, last) > 0 }) {
		task.Wrong = "no " + last + " came"
	}
	d.mu.Lock()
	task.Events = len(d.events[task.ID])
	d.mu.Unlock()
	if n := d.count(task.ID, outbox.SubjectRetry); last == outbox.SubjectFailed && n > 0 {
		task.Wrong = fmt.Sprintf("refused for good, yet retried %d times", n)
	}
	if n := d.count(task.ID, outbox.SubjectCompleted) + d.count(task.ID, outbox.SubjectFailed); n != 1 {
		task.Wrong = fmt.Sprintf("%d terminal events", n)
	}
}

// person does what the assignee would do on a page of the UI.
func (d *demo) person(ctx context.Context, task *demoTask, now map[string]any) (map[string]any, error) {
	who := fmt.Sprint(now["assignee"])
	output := map[string]any{"approved": true, "reviewedBy": who, "reason": "a good customer"}
	if task.Definition == "review-term-sheet" {
		output = map[string]any{"decision": "approved", "reviewerId": who, "reviewedAt": time.Now().UTC().Format(time.RFC3339), "reviewComments": "fair terms"}
	}
	return d.call(ctx, http.MethodPut, "/api/internal/tasks/"+task.ID+"/status", map[string]any{"status": "COMPLETED", "output": output, "reason": "done by " + who})
}

// check holds a task against what its entry expects.
func (r demoRequest) check(now map[string]any) string {
	if r.expect.Output != nil && !reflect.DeepEqual(now["output"], any(r.expect.Output)) {
		return fmt.Sprintf("expected output %v, got %v", r.expect.Output, now["output"])
	}
	if r.expect.Assignee != "" && now["assignee"] != r.expect.Assignee {
		return fmt.Sprintf("expected assignee %s, got %v", r.expect.Assignee, now["assignee"])
	}
	if r.expect.Error != nil {
		problem, _ := now["error"].(map[string]any)
		if problem["code"] != r.expect.Error.Code {
			return fmt.Sprintf("expected error %s, got %v", r.expect.Error.Code, now["error"])
		}
	}
	return ""
}

func (t *demoTask) note(now map[string]any) {
	t.Status = fmt.Sprint(now["status"])
	t.Lane = strings.TrimPrefix(fmt.Sprint(now["lane"]), "task-execution-")
	if n, ok := now["attempt"].(float64); ok {
		t.Attempts = int(n)
	}
	from, _ := time.Parse(time.RFC3339Nano, fmt.Sprint(now["createdAt"]))
	to, err := time.Parse(time.RFC3339Nano, fmt.Sprint(now["endedAt"]))
	if err == nil {
		t.Seconds = to.Sub(from).Seconds()
	}
}

func terminalStatus(status any) bool {
	switch status {
	case "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT":
		return true
	}
	return false
}

// hear prints an event as it arrives on the bus.
func (d *demo) hear(m outbox.Delivery, _ uint64) {
	var event outbox.Envelope[map[string]any]
	if json.Unmarshal(m.Body, &event) != nil {
		return
	}
	task := fmt.Sprint(event.Data["taskId"])
	d.mu.Lock()
	d.events[task] = append(d.events[task], m.Subject)
	name := d.names[task]
	d.mu.Unlock()
	select {
	case d.heard <- struct{}{}:
	default:
	}
	if name == "" {
		name = fmt.Sprint(event.Data["taskDefinitionId"])
	}
	d.say("%7.3f  %s  %-24s %s\n", time.Since(d.begun).Seconds(), d.paint(m.Subject), name, told(m.Subject, event.Data))
}

// told is the part of an event that is worth a line.
func told(subject string, data map[string]any) string {
	switch subject {
	case outbox.SubjectCompleted:
		summary, err := json.Marshal(data["outputSummary"])
		if err != nil {
			return ""
		}
		return fmt.Sprintf("in %v ms  %s", data["executionTime"], summary)
	case outbox.SubjectFailed:
		return fmt.Sprintf("%v: %v", data["errorCode"], data["errorMessage"])
	case outbox.SubjectRetry:
		return fmt.Sprintf("%v: %v; again in %v ms", data["lastErrorCode"], data["lastErrorMessage"], data["retryDelay"])
	case outbox.SubjectAssigned:
		return fmt.Sprintf("to %v, due %v", data["assigneeId"], data["dueDate"])
	}
	return ""
}

// paint pads a subject and colours it by what it says.
func (d *demo) paint(subject string) string {
	text := fmt.Sprintf("%-20s", subject)
	if !d.color {
		return text
	}
	color := "36"
	switch subject {
	case outbox.SubjectCompleted:
		color = "32"
	case outbox.SubjectFailed, outbox.SubjectCanceled:
		color = "31"
	case outbox.SubjectRetry:
		color = "33"
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (d *demo) count(task, subject string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, s := range d.events[task] {
		if s == subject {
			n++
		}
	}
	return n
}

// until looks after every event, and now and then, whether something has come true.
func (d *demo) until(ctx context.Context, holds func() bool) bool {
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return false
		case <-d.heard:
		case <-look.C:
		}
	}
	return true
}

func (d *demo) table(tasks []*demoTask) {
	d.say("\n")
	w := tabwriter.NewWriter(d.s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "task\tlane\tattempts\tevents\tstatus\ttime")
	good := 0
	for _, t := range tasks {
		mark := "ok"
		if t.Wrong != "" {
			mark = "WRONG: " + t.Wrong
		} else {
			good++
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%.3f s\t%s\n", t.Definition, t.Lane, t.Attempts, t.Events, t.Status, t.Seconds, mark)
	}
	_ = w.Flush()
	d.say("\n%d of %d tasks did what was expected.\n", good, len(tasks))
}

// call speaks to the API as the orchestrator.
func (d *demo) call(ctx context.Context, method, path string, body any) (map[string]any, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, d.l.service.url+path, bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	request.Header.Set("Authorization", "Bearer "+d.l.standins.Token("workflow-orchestrator"))
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil || response.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return out, nil
}

func (d *demo) say(format string, args ...any) {
	if !d.quiet {
		d.s.printf(format, args...)
	}
}
