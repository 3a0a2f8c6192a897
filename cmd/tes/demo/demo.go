package demo

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

//go:embed definitions.json requests.json
var data embed.FS

// timeLimit bounds the demo's tasks together. They usually take two seconds.
const timeLimit = time.Minute

// Options are the flags of tes demo.
type Options struct {
	JSON bool `name:"json" help:"Print the final table as JSON, and nothing else."`
}

// Env is the surrounding program.
type Env struct {
	Stdout io.Writer
	// Color allows terminal colours on Stdout.
	Color bool
	// PrintJSON writes a value to Stdout, indented.
	PrintJSON func(v any) error
	// Start starts everything in a throw-away directory. After an error nothing is left behind.
	Start func(ctx context.Context) (*System, error)
}

// System is a running tes with its database, bus and fake peer services.
type System struct {
	URL   string // of the API
	Bus   *natsbus.Bus
	Peers *peertest.Server // the fake peer services
	Stop  func(context.Context) error
}

// row is one submitted task, as a row of the final table.
type row struct {
	Definition string  `json:"task"`
	ID         string  `json:"taskId"`
	Lane       string  `json:"lane"`
	Attempts   int     `json:"attempts"`
	Status     string  `json:"status"`
	Seconds    float64 `json:"seconds"`
	Events     int     `json:"events"`
	Wrong      string  `json:"wrong,omitempty"` // the expectation that was not met; empty for none
}

// demo is one run.
type demo struct {
	env   Env
	sys   *System
	quiet bool
	color bool
	begun time.Time

	mu      sync.Mutex
	names   map[string]string   // definition id by task id; guarded by mu
	events  map[string][]string // subjects received, by task id, in order; guarded by mu
	arrived chan struct{}       // capacity 1: an event has arrived since the last look
}

// Run runs the demo and prints a table. It returns an error unless every expectation is met.
func Run(ctx context.Context, options Options, env Env) (err error) {
	d := &demo{
		env: env, quiet: options.JSON, color: env.Color && !options.JSON,
		names: map[string]string{}, events: map[string][]string{}, arrived: make(chan struct{}, 1),
	}

	d.say("Starting PostgreSQL, the bus, the service and its peer services in a throw-away directory …\n")
	d.begun = time.Now()
	if d.sys, err = env.Start(ctx); err != nil {
		return err
	}

	// Ctrl-C cancels ctx, and taking down must go on after it.
	defer func() { err = errors.Join(err, d.sys.Stop(context.WithoutCancel(ctx))) }()
	d.say("Ready after %.1f s: %s\n\n", time.Since(d.begun).Seconds(), d.sys.URL)
	d.begun = time.Now()

	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()

	// Before the first request, so that no event is missed.
	unsubscribe := d.subscribe(ctx)
	defer unsubscribe()

	tasks, err := d.play(ctx)
	if err != nil {
		return err
	}

	if options.JSON {
		err = env.PrintJSON(tasks)
	} else {
		d.table(tasks)
	}

	for _, t := range tasks {
		if t.Wrong != "" {
			err = errors.Join(err, fmt.Errorf("%s: %s", t.Definition, t.Wrong))
		}
	}

	return err
}

// subscribe receives every event of the bus until unsubscribe has returned.
func (d *demo) subscribe(ctx context.Context) (unsubscribe func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = d.sys.Bus.Subscribe(ctx, "task.>", natsbus.All, d.receive) })
	return func() { cancel(); running.Wait() }
}

// play registers the definitions, submits the requests and waits for the end of each task.
func (d *demo) play(ctx context.Context) ([]*row, error) {
	if err := d.register(ctx); err != nil {
		return nil, err
	}

	requests, err := readRequests()
	if err != nil {
		return nil, err
	}

	var tasks []*row
	steered := false
	for _, e := range requests {
		invoice := e.body["taskDefinitionId"] == "create-invoice" && e.expect.Status == "COMPLETED"

		if invoice && !steered {
			// The failing call shows a retry.
			steered = true
			d.sys.Peers.Steer(peertest.Integration, peertest.Steering{
				Mode: peertest.ModeError, Status: 503, Times: 1,
				Body: json.RawMessage(`{"error": {"code": "SERVICE_UNAVAILABLE", "message": "the accounting system is being restarted"}, "retryable": true}`),
			})
		}

		task, err := d.submit(ctx, e)
		if err != nil {
			return nil, err
		}

		tasks = append(tasks, task)

		if invoice {
			// The failing call must not hit the next integration task instead.
			d.until(ctx, func() bool {
				return d.count(task.ID, outbox.SubjectRetry)+d.count(task.ID, outbox.SubjectCompleted)+d.count(task.ID, outbox.SubjectFailed) > 0
			})
			if d.count(task.ID, outbox.SubjectRetry) == 0 {
				task.Wrong = "the first call was refused, and no task.retry came"
			}
		}
	}

	for i, e := range requests {
		if err := d.follow(ctx, e, tasks[i]); err != nil {
			tasks[i].Wrong = err.Error()
		}
	}

	return tasks, nil
}

func (d *demo) register(ctx context.Context) error {
	raw, err := data.ReadFile("definitions.json")
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

func (d *demo) submit(ctx context.Context, e entry) (*row, error) {
	name := fmt.Sprint(e.body["taskDefinitionId"])
	task := &row{Definition: name}
	answer, err := d.call(ctx, http.MethodPost, "/api/internal/tasks", e.body)
	if err != nil {
		return nil, err
	}

	task.ID = fmt.Sprint(answer["taskId"])

	d.mu.Lock()
	d.names[task.ID] = name
	d.mu.Unlock()
	return task, nil
}

// follow waits until a task has its expected status or a terminal one, compares the task with
// its entry, and completes an assigned task in its assignee's name.
func (d *demo) follow(ctx context.Context, e entry, task *row) error {
	var now map[string]any
	var err error
	reached := d.until(ctx, func() bool {
		now, err = d.call(ctx, http.MethodGet, "/api/internal/tasks/"+task.ID, nil)
		return err == nil && (now["status"] == e.expect.Status || terminalStatus(now["status"]))
	})
	if err != nil {
		return err
	}

	task.note(now)
	if task.Wrong != "" {
		return nil
	}

	if !reached || now["status"] != e.expect.Status {
		task.Wrong = fmt.Sprintf("expected %s, it is %v (error: %v)", e.expect.Status, now["status"], now["error"])
		return nil
	}

	if wrong := e.check(now); wrong != "" {
		task.Wrong = wrong
		return nil
	}

	if now["status"] == "ASSIGNED" {
		if now, err = d.person(ctx, task, now); err != nil {
			return err
		}

		task.note(now)
	}

	d.checkEvents(ctx, e, task)
	return nil
}

// checkEvents compares the events received with the task's end: exactly one terminal event, and
// no retry of a permanent failure.
func (d *demo) checkEvents(ctx context.Context, e entry, task *row) {
	last := outbox.SubjectCompleted
	if e.expect.Status == "FAILED" {
		last = outbox.SubjectFailed
	}

	// The API may answer with the terminal status before the relay has published its event.
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

// person completes a manual task as its assignee would on a page of the UI.
func (d *demo) person(ctx context.Context, task *row, now map[string]any) (map[string]any, error) {
	// The output must satisfy the output schema of its definition.
	who := fmt.Sprint(now["assignee"])
	output := map[string]any{"approved": true, "reviewedBy": who, "reason": "a good customer"}
	if task.Definition == "review-term-sheet" {
		output = map[string]any{"decision": "approved", "reviewerId": who, "reviewedAt": time.Now().UTC().Format(time.RFC3339), "reviewComments": "fair terms"}
	}
	return d.call(ctx, http.MethodPut, "/api/internal/tasks/"+task.ID+"/status", map[string]any{"status": "COMPLETED", "output": output, "reason": "done by " + who})
}

// note copies what the table shows of a task.
func (t *row) note(now map[string]any) {
	t.Status = fmt.Sprint(now["status"])
	t.Lane = strings.TrimPrefix(fmt.Sprint(now["lane"]), "task-execution-")
	if n, ok := now["attempt"].(float64); ok {
		t.Attempts = int(n)
	}

	// A task has no end while a person works on the task; note is called again afterwards.
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

// receive counts and prints an event of the bus.
func (d *demo) receive(m outbox.Delivery, _ uint64) {
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
	// The channel has room for one: until looks at the counts, not at the number of signals.
	case d.arrived <- struct{}{}:
	default:
	}

	// A created event may arrive before the answer to the create.
	if name == "" {
		name = fmt.Sprint(event.Data["taskDefinitionId"])
	}

	d.say("%7.3f  %s  %-24s %s\n", time.Since(d.begun).Seconds(), d.colorize(m.Subject), name, summary(m.Subject, event.Data))
}

// summary formats the part of an event's data that the demo prints.
func summary(subject string, data map[string]any) string {
	switch subject {
	case outbox.SubjectCompleted:
		output, err := json.Marshal(data["outputSummary"])
		if err != nil {
			return ""
		}

		return fmt.Sprintf("in %v ms  %s", data["executionTime"], output)
	case outbox.SubjectFailed:
		return fmt.Sprintf("%v: %v", data["errorCode"], data["errorMessage"])
	case outbox.SubjectRetry:
		return fmt.Sprintf("%v: %v; again in %v ms", data["lastErrorCode"], data["lastErrorMessage"], data["retryDelay"])
	case outbox.SubjectAssigned:
		return fmt.Sprintf("to %v, due %v", data["assigneeId"], data["dueDate"])
	}

	return ""
}

// colorize pads a subject and, on a terminal, colours the subject by its meaning.
func (d *demo) colorize(subject string) string {
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

// until evaluates holds after every event and every 50 ms until it is true. It returns false when
// ctx ends first.
func (d *demo) until(ctx context.Context, holds func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()

	for !holds() {
		select {
		case <-ctx.Done():
			return false
		case <-d.arrived:
		case <-tick.C:
		}
	}

	return true
}

func (d *demo) table(tasks []*row) {
	d.say("\n")
	w := tabwriter.NewWriter(d.env.Stdout, 0, 0, 2, ' ', 0)
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

// call sends a request to the API with the orchestrator's token and decodes the JSON response.
func (d *demo) call(ctx context.Context, method, path string, body any) (map[string]any, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}

	request, err := http.NewRequestWithContext(ctx, method, d.sys.URL+path, bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}

	request.Header.Set("Authorization", "Bearer "+d.sys.Peers.Token("workflow-orchestrator"))
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

// say prints, unless JSON is wanted.
func (d *demo) say(format string, args ...any) {
	if !d.quiet {
		fmt.Fprintf(d.env.Stdout, format, args...)
	}
}
