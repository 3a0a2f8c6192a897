package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// message is an event of a peer service's.
func message(subject string, data object) []byte {
	text, _ := json.Marshal(object{
		"type": subject, "id": uuid.NewString(), "timestamp": time.Now().UTC().Format(time.RFC3339Nano), "data": data,
		"metadata": object{"correlationId": uuid.NewString(), "source": "operations"},
	})
	return text
}

func (b *served) tell(t *testing.T, subject string, data object) {
	t.Helper()
	require.NoError(t, b.bus.Send(t.Context(), subject, nil, message(subject, data)))
}

// processID is what serve calls itself.
func processID(t *testing.T, p *program) string {
	t.Helper()
	for line := range strings.Lines(p.stderr.String()) {
		var said struct{ Msg, Process string }
		if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving" {
			return said.Process
		}
	}
	require.FailNow(t, "serve does not say what it is")
	return ""
}

// system.shutdown_requested → SystemEventHandler: whom it is for stops, in order and
// with 0; the others go on, and so does who comes later.
func TestShutdownRequestedStopsWhomItIsFor(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	env := append(b.env, "TES_DRAIN_DELAY=500ms", "TES_SHUTDOWN_GRACE=1h")
	args := []string{"serve", "--http", "127.0.0.1:0"}
	one, two := start(t, env, args...), start(t, env, args...)
	urlOne, urlTwo := serving(t, one), serving(t, two)
	ready := must(t, http.StatusOK, "GET", urlOne+"/readyz", "", nil)
	require.Contains(t, []any{"leading", "standing by"}, ready["relay"])
	require.Equal(t, object{"status": "ok", "database": "ok", "bus": "ok", "relay": ready["relay"], "maintenance": []any{}}, ready)

	// Something runs that would go on for longer than anybody waits.
	release := make(chan struct{})
	slow := hold(t, release)
	orchestrator := b.peers.Token("workflow-orchestrator")
	created := must(t, http.StatusCreated, "POST", urlOne+tasksPath, orchestrator, object{
		"taskDefinitionId": "slow", "workflowId": "w", "taskType": "AUTOMATED", "input": object{},
		"executionConfig": object{"executor": "http", "http": object{"url": slow.url, "method": "POST"}},
	})
	<-slow.called

	b.tell(t, outbox.SubjectShutdown, object{"target": processID(t, one), "graceSeconds": 0, "reason": "the rack is moved"})
	eventually(t, patience, func() error {
		status, answer, _, err := ask(t.Context(), "GET", urlOne+"/readyz", "", nil)
		if err == nil && (status != http.StatusServiceUnavailable || answer["detail"] != "the process is stopping") {
			return fmt.Errorf("it is still ready: %d %v", status, answer)
		}
		return nil // or it is gone already
	})
	require.Equal(t, exitOK, one.wait(t, patience), one.stderr)
	require.Contains(t, one.stderr.String(), "the rack is moved")
	must(t, http.StatusOK, "GET", urlTwo+"/readyz", "", nil)
	eventually(t, patience, func() error { // the other begins what was handed back, and tells of that
		if n := number(t, b.dsn, "SELECT count(*) FROM outbox"); n != 0 {
			return fmt.Errorf("%d rounds of events are not told", n)
		}
		return nil
	})
	close(release)
	reaches(t, urlTwo, orchestrator, created["taskId"], "COMPLETED") // handed back, wherever it ran

	b.tell(t, outbox.SubjectShutdown, object{})
	require.Equal(t, exitOK, two.wait(t, patience), two.stderr)

	// Nobody is there to hear this one, and who comes later need not obey it.
	b.tell(t, outbox.SubjectShutdown, object{"target": "task-execution-service"})
	three := start(t, env, args...)
	urlThree := serving(t, three)
	eventually(t, patience, func() error {
		if n := number(t, b.dsn, "SELECT count(*) FROM inbox WHERE subject = 'system.shutdown_requested'"); n != 3 {
			return fmt.Errorf("%d of 3 orders were heard", n)
		}
		return nil
	})
	must(t, http.StatusOK, "GET", urlThree+"/readyz", "", nil)
	require.NotContains(t, three.stderr.String(), "ordered to stop")
}

func TestShutdownRequestedStopsDev(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	bus := joinBus(t, r.NATSURL)
	require.NoError(t, bus.Send(t.Context(), outbox.SubjectShutdown, nil, message(outbox.SubjectShutdown, object{"target": "tes"})))
	require.Equal(t, exitOK, p.wait(t, patience), p.stderr)
	require.Contains(t, p.stdout.String(), "Stopping.")
	require.NoFileExists(t, file)
}

// system.maintenance_mode → SystemEventHandler: it holds in every process, and for
// one that starts while it does.
func TestMaintenanceModeSurvivesRestarts(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	args := []string{"serve", "--http", "127.0.0.1:0"}
	p := start(t, b.env, args...)
	url := serving(t, p)
	rests := func(url string, lanes int) {
		t.Helper()
		eventually(t, patience, func() error {
			ready := must(t, http.StatusOK, "GET", url+"/readyz", "", nil)
			if n := len(ready["maintenance"].([]any)); n != lanes {
				return fmt.Errorf("%d lanes rest, not %d", n, lanes)
			}
			return nil
		})
	}
	b.tell(t, outbox.SubjectMaintenance, object{"enabled": true, "reason": "new disks"})
	rests(url, 5)
	orchestrator := b.peers.Token("workflow-orchestrator")
	created := must(t, http.StatusCreated, "POST", url+tasksPath, orchestrator, noop("w"))
	why := must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%v/why", url, tasksPath, created["taskId"]), orchestrator, nil)
	require.Equal(t, "MAINTENANCE", why["blockedBy"])
	require.Equal(t, exitOK, p.stop(t), p.stderr)

	again := start(t, b.env, args...)
	url = serving(t, again)
	rests(url, 5)
	// A resume in River's page is no end of it.
	must(t, http.StatusOK, "PUT", url+"/riverui/api/queues/task-execution-automated/resume", orchestrator, object{})
	why = must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%v/why", url, tasksPath, created["taskId"]), orchestrator, nil)
	require.Equal(t, "MAINTENANCE", why["blockedBy"])
	b.tell(t, outbox.SubjectMaintenance, object{"enabled": false})
	reaches(t, url, orchestrator, created["taskId"], "COMPLETED")
	rests(url, 0)
}

// asyncAPI is the document that a service serves, with its schemas compiled.
type asyncAPI struct {
	channels map[string]string // ids of messages by address
	messages object
	compiler *jsonschema.Compiler
}

func readAsyncAPI(t *testing.T, url string) *asyncAPI {
	t.Helper()
	doc := must(t, http.StatusOK, "GET", url+"/asyncapi.json", "", nil)
	require.Equal(t, "3.0.0", doc["asyncapi"])
	a := &asyncAPI{channels: map[string]string{}, compiler: jsonschema.NewCompiler()}
	a.compiler.AssertFormat()
	a.messages = doc["components"].(object)["messages"].(object)
	for _, channel := range doc["channels"].(object) {
		of := channel.(object)
		id := slices.Collect(maps.Keys(of["messages"].(object)))[0]
		a.channels[of["address"].(string)] = id
	}
	text, err := json.Marshal(doc)
	require.NoError(t, err)
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	require.NoError(t, a.compiler.AddResource("mem:///asyncapi.json", whole))
	return a
}

// schema is that of a part of a message: payload or headers.
func (a *asyncAPI) schema(subject, part string) (*jsonschema.Schema, error) {
	id, known := a.channels[subject]
	if rest, dead := strings.CutPrefix(subject, "deadletter."); dead && a.channels[rest] != "" {
		id, known = a.channels["deadletter.{subject}"]
	}
	if !known {
		return nil, fmt.Errorf("%s is in no document", subject)
	}
	return a.compiler.Compile("mem:///asyncapi.json#/components/messages/" + id + "/" + part)
}

func (a *asyncAPI) holds(subject, part string, value any) error {
	schema, err := a.schema(subject, part)
	if err != nil {
		return err
	}
	if err := schema.Validate(value); err != nil {
		return fmt.Errorf("%s of %s: %w\n%v", part, subject, err, value)
	}
	return nil
}

// describes demands that every member of a body is a member of its schema too: the
// schemas leave room for new ones, and this is how a forgotten one is found.
func (a *asyncAPI) describes(schema *jsonschema.Schema, value any, at string) error {
	for schema.Ref != nil {
		schema = schema.Ref
	}
	of, ok := value.(map[string]any)
	if !ok || len(schema.Properties) == 0 {
		return nil
	}
	for name, member := range of {
		property := schema.Properties[name]
		if property == nil {
			return fmt.Errorf("%s.%s is in no document", at, name)
		}
		if err := a.describes(property, member, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func (a *asyncAPI) check(d outbox.Delivery) error {
	header := map[string]any{}
	for name, value := range d.Header {
		header[name] = value
	}
	body, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.Body))
	if err != nil {
		return err
	}
	schema, err := a.schema(d.Subject, "payload")
	if err != nil {
		return err
	}
	return errors.Join(a.holds(d.Subject, "payload", body), a.holds(d.Subject, "headers", header), a.describes(schema, body, d.Subject))
}

// cloudEvent reads what travels in the binary mode of the NATS binding with the SDK
// of CloudEvents, which knows what an event must be.
func cloudEvent(d outbox.Delivery) (event.Event, error) {
	encoded := d.Header
	d.Header = map[string]string{}
	for name, value := range encoded {
		plain, err := neturl.PathUnescape(value) // which the binding leaves to its reader
		if strings.HasPrefix(name, "ce-") && (err != nil || strings.ContainsAny(value, " \"")) {
			return event.Event{}, fmt.Errorf("%s is not encoded: %s", name, value)
		}
		d.Header[name] = plain
	}
	e := event.New(d.Header["ce-specversion"])
	e.SetID(d.Header["ce-id"])
	e.SetType(d.Header["ce-type"])
	e.SetSource(d.Header["ce-source"])
	e.SetSubject(d.Header["ce-subject"])
	at, err := time.Parse(time.RFC3339Nano, d.Header["ce-time"])
	if err != nil {
		return e, err
	}
	e.SetTime(at)
	known := []string{"specversion", "id", "type", "source", "subject", "time", "datacontenttype"}
	for name, value := range d.Header {
		if attribute, ok := strings.CutPrefix(name, "ce-"); ok && !slices.Contains(known, attribute) {
			e.SetExtension(attribute, value)
		}
	}
	if err := e.SetData(d.Header["ce-datacontenttype"], json.RawMessage(d.Body)); err != nil {
		return e, err
	}
	return e, e.Validate()
}

// Every event of tasks of each kind, as it comes over the bus, is what the AsyncAPI
// document says, and a CloudEvent.
func TestEventsAreAsDocumented(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	url := serving(t, p)
	document := readAsyncAPI(t, url)
	var mu sync.Mutex
	seen := map[string]int{} // messages by subject
	var wrong []error
	collect := func(d outbox.Delivery, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		seen[d.Subject]++
		if err := document.check(d); err != nil {
			wrong = append(wrong, err)
		}
		if !strings.HasPrefix(d.Subject, "task.") {
			return
		}
		e, err := cloudEvent(d)
		var body outbox.Envelope[json.RawMessage]
		if err = errors.Join(err, json.Unmarshal(d.Body, &body)); err != nil {
			wrong = append(wrong, fmt.Errorf("%s is no CloudEvent: %w", d.Subject, err))
			return
		}
		same := e.ID() == body.ID && e.Type() == body.Type && e.Source() == body.Metadata.Source && e.Time().Equal(body.Timestamp) &&
			e.Extensions()["correlationid"] == body.Metadata.CorrelationID
		if !same {
			wrong = append(wrong, fmt.Errorf("header and body of %s differ: %v %s", d.Subject, d.Header, d.Body))
		}
	}
	for _, subject := range []string{"task.>", "workflow.>", "integration.>", "system.>", "deadletter.>"} {
		require.NoError(t, b.bus.Subscribe(t.Context(), subject, natsbus.All, collect))
	}

	down := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	orchestrator := b.peers.Token("workflow-orchestrator")
	ui := b.peers.Token("ui-framework")
	span := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	create := func(body object) any {
		t.Helper()
		return must(t, http.StatusCreated, "POST", url+tasksPath, orchestrator, body, "Traceparent", span)["taskId"]
	}
	for name, definition := range map[string]object{
		"total": {"type": "AUTOMATED", "executionConfig": object{"executor": "expression", "expression": []any{object{"name": "total", "value": "1.5"}}}},
		"fails": {"type": "AUTOMATED", "retryPolicy": object{"maxRetries": 1, "retryInterval": 1}, "executionConfig": object{"executor": "http", "http": object{"url": down.URL}}},
		"mail":  {"type": "INTEGRATION", "executionConfig": object{"integration": object{"type": "REST", "method": "send_email", "instance": "mail"}}},
		"look":  {"type": "MANUAL", "executionConfig": object{"assignmentRules": object{"role": "reviewer"}}},
		"group": {"type": "MANUAL", "executionConfig": object{"assignmentRules": object{"defaultGroup": "office"}}},
	} {
		definition["version"] = "1.0.0"
		must(t, http.StatusCreated, "PUT", url+definitionsPath+"/"+name, orchestrator, definition)
	}
	of := func(definition string) object {
		return object{"taskDefinitionId": definition, "workflowId": "w", "input": object{}}
	}
	b.tell(t, outbox.SubjectTaskRequested, of("total"))
	b.tell(t, outbox.SubjectTaskRequested, object{"taskDefinitionId": "nobody-knows", "workflowId": "w", "input": object{}})
	b.tell(t, outbox.SubjectMaintenance, object{"enabled": true, "lanes": []any{"task-execution-deadletter"}})
	b.tell(t, outbox.SubjectShutdown, object{"target": "user-service"})
	odd := of("total")
	odd["correlationId"] = `a%41b"c`
	reaches(t, url, orchestrator, create(odd), "COMPLETED")
	reaches(t, url, orchestrator, create(of("mail")), "COMPLETED")
	reaches(t, url, orchestrator, create(of("fails")), "FAILED")
	look := create(of("look"))
	reaches(t, url, orchestrator, look, "ASSIGNED")
	must(t, http.StatusOK, "POST", fmt.Sprintf("%s%s/%v/reassign", url, tasksPath, look), ui, object{"groupId": "others"})
	must(t, http.StatusOK, "POST", fmt.Sprintf("%s%s/%v/cancel", url, tasksPath, look), orchestrator, object{"reason": "enough"})
	reaches(t, url, orchestrator, create(of("group")), "ASSIGNED")

	want := map[string]bool{"deadletter." + outbox.SubjectTaskRequested: true}
	for _, subject := range subjectsInGo(t) {
		want[subject] = true
	}
	eventually(t, patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		for subject := range want {
			if seen[subject] == 0 {
				return fmt.Errorf("nothing was heard on %s: %v", subject, seen)
			}
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, wrong)

	// What is not so is found.
	require.Error(t, document.check(outbox.Delivery{Subject: outbox.SubjectCreated, Body: []byte(`{}`)}))
	require.Error(t, document.check(outbox.Delivery{Subject: "task.new", Body: []byte(`{}`)}))
	_, err := cloudEvent(outbox.Delivery{Header: map[string]string{"ce-correlationid": "a b"}})
	require.ErrorContains(t, err, "is not encoded")
	_, err = cloudEvent(outbox.Delivery{Header: map[string]string{"ce-specversion": "1.0", "ce-time": "2026-11-23T01:42:11Z", "ce-datacontenttype": "application/json"}, Body: []byte(`{}`)})
	require.Error(t, err)
}

// Every subject that the code names is in the document, with an example that its
// schema takes.
func TestAsyncAPINamesEverySubject(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	url := serving(t, start(t, b.env, "serve", "--http", "127.0.0.1:0"))
	document := readAsyncAPI(t, url)
	addresses := slices.Sorted(maps.Keys(document.channels))
	require.ElementsMatch(t, append(subjectsInGo(t), "deadletter.{subject}"), addresses)
	for address, id := range document.channels {
		examples, _ := document.messages[id].(object)["examples"].([]any)
		require.Equal(t, address == "deadletter.{subject}", len(examples) == 0, address)
		for _, example := range examples {
			text, err := json.Marshal(example.(object)["payload"])
			require.NoError(t, err)
			body, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
			require.NoError(t, err)
			require.NoError(t, document.holds(address, "payload", body))
		}
	}
	_, _, served, err := ask(t.Context(), "GET", url+"/asyncapi.yaml", "", nil)
	require.NoError(t, err)
	code, printed, _ := tes(t, nil, "asyncapi")
	require.Equal(t, exitOK, code)
	require.Equal(t, printed, string(served))
}

// subjectsInGo are the constants of package outbox whose names begin with Subject.
func subjectsInGo(t *testing.T) (all []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../outbox/event.go", nil, 0)
	require.NoError(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if strings.HasPrefix(name.Name, "Subject") {
				text, err := strconv.Unquote(spec.Values[i].(*ast.BasicLit).Value)
				require.NoError(t, err)
				all = append(all, text)
			}
		}
		return true
	})
	require.Len(t, all, 11, "a subject has come or gone: say so here")
	return all
}

// held is an HTTP service that answers when it is let.
type held struct {
	url    string
	called chan struct{} // closed when somebody has asked
}

func hold(t *testing.T, release <-chan struct{}) *held {
	t.Helper()
	h := &held{called: make(chan struct{})}
	first := sync.OnceFunc(func() { close(h.called) })
	server := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first()
		select {
		case <-release:
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"done": true}`)
	}))
	h.url = server.URL
	return h
}
