package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// served is what serve needs of the world: a database, peer services, a bus.
type served struct {
	dsn   string
	peers *peertest.Server
	bus   *natsbus.Bus // nil: serve embeds its own
	dir   string       // where that one is
	env   []string
}

func setupServe(t *testing.T, external bool) *served {
	t.Helper()
	return setupServeOn(t, dbtest.URL(dbtest.New(t)), external)
}

func setupServeOn(t *testing.T, dsn string, external bool) *served {
	t.Helper()
	b := &served{dsn: dsn, dir: t.TempDir()}
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte(canary+"\n"), 0o600))
	b.env = environ("TES_DATABASE_URL="+b.dsn, "TES_SERVICE_TOKEN_FILE="+token, "TES_NATS_SYNC=off", "TES_HTTP_ALLOW=127.0.0.0/8")
	config := peertest.Config{}
	if external {
		var err error
		b.bus, err = natsbus.Open(t.Context(), natsbus.Config{
			StoreDir: b.dir, Listen: "127.0.0.1:0", NoSync: true, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.bus.Close(context.Background())) })
		b.env = append(b.env, "TES_NATS_URL="+b.bus.ClientURL())
		config.Respond = func(ctx context.Context, subject string, body []byte) error {
			return b.bus.Send(ctx, subject, nil, body)
		}
	} else {
		b.env = append(b.env, "TES_DATA_DIR="+b.dir)
	}
	var err error
	b.peers, err = peertest.Start(config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.peers.Close(context.Background())) })
	b.env = append(b.env, "TES_NEIGHBOURS_URL="+b.peers.URL())
	return b
}

// serving waits until serve says in its log where it is.
func serving(t *testing.T, p *program) (apiURL string) {
	t.Helper()
	apiURL, ended := servingOrDead(t, p)
	require.False(t, ended, "serve has ended: %d\n%s", p.code, p.stderr)
	return apiURL
}

// servingOrDead also takes that it has ended.
func servingOrDead(t *testing.T, p *program) (apiURL string, ended bool) {
	t.Helper()
	eventually(t, patience, func() error {
		select {
		case <-p.done:
			ended = true
			return nil
		default:
		}
		for line := range strings.Lines(p.stderr.String()) {
			var said struct{ Msg, URL string }
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving" {
				apiURL = said.URL
				return nil
			}
		}
		return errors.New("serve does not say where it is")
	})
	return apiURL, ended
}

// heard are the events of a bus, by the task, in their order.
type heard struct {
	mu     sync.Mutex
	events map[string][]string // subjects by task; guarded by mu
}

func listenTo(t *testing.T, bus *natsbus.Bus) *heard {
	t.Helper()
	h := &heard{events: map[string][]string{}}
	require.NoError(t, bus.Subscribe(t.Context(), "task.>", natsbus.All, func(d outbox.Delivery, _ uint64) {
		h.mu.Lock()
		defer h.mu.Unlock()
		task := d.Header["ce-subject"]
		h.events[task] = append(h.events[task], d.Subject)
	}))
	return h
}

func (h *heard) of(task any) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events[fmt.Sprint(task)])
}

func (h *heard) waitFor(t *testing.T, task any, subjects ...string) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := h.of(task); !slices.Equal(got, subjects) {
			return fmt.Errorf("heard of %v: %v", task, got)
		}
		return nil
	})
}

// From a request to an event, with a bus of its own.
func TestServe(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")

	must(t, http.StatusUnauthorized, "POST", api+tasksPath, "", noop("w"))
	created := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
	task := reaches(t, api, orchestrator, created["taskId"], "COMPLETED")
	require.EqualValues(t, 1, task["attempt"])
	must(t, http.StatusOK, "GET", api+"/readyz", "", nil)
	must(t, http.StatusOK, "GET", api+"/openapi.yaml", "", nil)
	metrics := must(t, http.StatusOK, "GET", api+tasksPath+"/metrics", b.peers.Token("monitoring-service"), nil)
	require.NotEmpty(t, metrics)

	// River's page wants to know who looks; fake peer services are not for production.
	must(t, http.StatusUnauthorized, "GET", api+"/riverui/api/queues", "", nil)
	must(t, http.StatusForbidden, "GET", api+"/riverui/api/queues", b.peers.Token("task-worker"), nil)
	must(t, http.StatusOK, "GET", api+"/riverui/api/queues", b.peers.Token("monitoring-service"), nil)
	must(t, http.StatusNotFound, "GET", api+"/_standin/auth", orchestrator, nil)

	// The bus is ours as long as we run.
	says(t, exitError, b.env, []string{"serve", "--http", "127.0.0.1:0"}, "is in use by the embedded NATS server of process ")

	require.Equal(t, exitOK, p.stop(t))
	require.NotContains(t, p.stderr.String(), canary, "our token is in the log")
	require.Empty(t, p.stdout.String())
	_, _, _, err := ask(t.Context(), "GET", api+"/livez", "", nil)
	require.Error(t, err)
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM outbox"))

	bus, err := natsbus.Open(t.Context(), natsbus.Config{StoreDir: filepath.Join(b.dir, "nats"), NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.Background())) })
	listenTo(t, bus).waitFor(t, created["taskId"], outbox.SubjectCreated, outbox.SubjectStarted, outbox.SubjectCompleted)
}

// With a bus that others use too: what they answer there ends a task.
func TestServeOnAnExternalBus(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	h := listenTo(t, b.bus)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")

	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/mail", orchestrator, object{
		"name": "Mail", "type": "INTEGRATION", "version": "1.0.0",
		"executionConfig": object{"integration": object{"type": "REST", "method": "send_email", "instance": "mail", "async": true}},
	})
	created := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
		"taskDefinitionId": "mail", "workflowId": "w", "input": object{"to": "a@example.com"},
	})
	task := reaches(t, api, orchestrator, created["taskId"], "COMPLETED")
	require.Equal(t, "SENT", task["output"].(object)["status"])
	h.waitFor(t, created["taskId"], outbox.SubjectCreated, outbox.SubjectStarted, outbox.SubjectCompleted)
	for _, request := range b.peers.Requests(peertest.Integration) {
		require.Equal(t, "Bearer [redacted]", request.Headers["Authorization"])
	}

	require.Equal(t, exitOK, p.stop(t))
	_, err := os.Stat("tes-data")
	require.ErrorIs(t, err, os.ErrNotExist, "a store of its own, beside the bus it was given")
}

// SIGTERM in the middle of work: whoever got an answer has a task, what runs ends
// or is handed back, and the next process ends what is left, at once.
func TestServeStopsUnderLoad(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	h := listenTo(t, b.bus)
	slow := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(150 * time.Millisecond): // work that takes its time
		case <-r.Context().Done():
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"done": true}`)
	}))
	orchestrator := b.peers.Token("workflow-orchestrator")

	p := startProcess(t, append(b.env, "TES_SHUTDOWN_GRACE=10s"), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/slow", orchestrator, object{
		"name": "Slow", "type": "AUTOMATED", "version": "1.0.0",
		"executionConfig": object{"executor": "http", "http": object{"url": slow.URL, "method": "POST"}},
	})

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var odd []string
	load, enough := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for load.Err() == nil {
				body := noop("load")
				if i%2 == 0 {
					body = object{"taskDefinitionId": "slow", "workflowId": "load", "input": object{}}
				}
				status, answer, text, err := ask(context.WithoutCancel(load), "POST", api+tasksPath, orchestrator, body)
				mu.Lock()
				switch {
				case err == nil && status == http.StatusCreated:
					acknowledged[fmt.Sprint(answer["taskId"])] = true
				case err == nil && status == http.StatusServiceUnavailable:
				case err != nil:
					enough() // nobody is there any more
				default:
					odd = append(odd, fmt.Sprintf("%d %s", status, text))
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	eventually(t, patience, func() error {
		if n := count(); n < 100 {
			return fmt.Errorf("only %d tasks", n)
		}
		return nil
	})
	p.signal(t, syscall.SIGTERM)
	require.Equal(t, exitOK, p.wait(t, 25*time.Second), p.stderr)
	enough()
	clients.Wait()
	require.Empty(t, odd)
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM task WHERE status = 'RUNNING'"), "what ran was ended or handed back")
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM executor"), "it has said good-bye")
	left := number(t, b.dsn, "SELECT count(*) FROM task WHERE status = 'PENDING'")

	next := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api = serving(t, next)
	eventually(t, 20*time.Second, func() error {
		if n := number(t, b.dsn, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'"); n > 0 {
			return fmt.Errorf("%d tasks of %d are not completed; %d were left", n, len(acknowledged), left)
		}
		return nil
	})
	for id := range acknowledged {
		must(t, http.StatusOK, "GET", api+tasksPath+"/"+id, orchestrator, nil)
		eventually(t, patience, func() error {
			ends := 0
			for _, subject := range h.of(id) {
				if subject == outbox.SubjectCompleted {
					ends++
				}
			}
			if ends != 1 {
				return fmt.Errorf("task %s has ended %d times: %v", id, ends, h.of(id))
			}
			return nil
		})
	}
	require.Equal(t, exitOK, next.stop(t))
	t.Logf("%d tasks, %d left to the next process", len(acknowledged), left)
}

// What serve cannot do without is said in a line, and nothing is left running.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	peers := "TES_NEIGHBOURS_URL=" + b.peers.URL()
	args := []string{"serve", "--http", "127.0.0.1:0"}
	quiet := func(more ...string) []string {
		return environ(append(more, "TES_DATA_DIR="+t.TempDir(), "TES_NATS_SYNC=off", "TES_LOG_LEVEL=error")...)
	}

	says(t, exitUsage, quiet(peers), args, "TES_DATABASE_URL is not set")
	says(t, exitUsage, quiet("TES_DATABASE_URL="+b.dsn), args, "the peer services are not named: set TES_NEIGHBOURS_URL, or TES_AUTH_URL, TES_INTEGRATION_URL and TES_USER_URL")
	says(t, exitUsage, quiet("TES_DATABASE_URL="+b.dsn, "TES_AUTH_URL="+b.peers.URL(), "TES_USER_URL="+b.peers.URL()), args, "the peer services are not named")
	says(t, exitError, quiet(peers, "TES_DATABASE_URL="+freshDatabase(t)), args, "tes: the database lacks ", ": run tes migrate up")
	says(t, exitError, quiet(peers, "TES_DATABASE_URL=postgres://tes:"+canary+"@"+nobodysPort(t)+"/tes"), args, "tes: reach database: ", "refused")
	says(t, exitUsage, quiet(peers, "TES_DATABASE_URL=postgres://tes:"+canary+"@[/tes"), args, "tes: TES_DATABASE_URL: ")
	says(t, exitError, quiet("TES_NEIGHBOURS_URL=no address", "TES_DATABASE_URL="+b.dsn), args, "tes: peer service: ", "is not an http or https URL")

	taken := takenPort(t)
	says(t, exitError, quiet(peers, "TES_DATABASE_URL="+b.dsn), []string{"serve", "--http", taken},
		"tes: cannot serve on "+taken, "address already in use", "--http", "port 0 takes any free one")
	says(t, exitError, quiet(peers, "TES_DATABASE_URL="+b.dsn, "TES_HTTP="+taken), []string{"serve"}, "tes: cannot serve on "+taken)
	says(t, exitUsage, quiet(peers, "TES_DATABASE_URL="+b.dsn), []string{"serve", "--http", "nowhere"}, `tes: --http: "nowhere" is not HOST:PORT`)

	// What no bus can mend.
	says(t, exitUsage, quiet(peers, "TES_DATABASE_URL="+b.dsn, "TES_NATS_URL=nats://u:"+canary+"@["), args, "tes: TES_NATS_URL: the NATS URL [ cannot be read")
	says(t, exitError, quiet(peers, "TES_DATABASE_URL="+b.dsn, "TES_NATS_URL=nats://127.0.0.1:1", "TES_NATS_CREDENTIALS=/no/such"), args, "tes: bus: read the NATS credentials: open /no/such: ")

	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM executor"))
}

// A bus that does not answer holds up neither the start nor, at Ctrl-C, the end.
func TestServeInterruptedWhileItWaitsForTheBus(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	p := start(t, append(b.env, "TES_NATS_URL=nats://u:"+canary+"@"+silent.Addr().String()), "serve", "--http", "127.0.0.1:0")
	must(t, http.StatusOK, "GET", serving(t, p)+"/livez", "", nil)
	eventually(t, patience, func() error {
		if !strings.Contains(p.stderr.String(), "waiting for the NATS server") {
			return errors.New("it does not say that it waits")
		}
		return nil
	})
	begun := time.Now()
	require.Equal(t, exitOK, p.stop(t))
	require.Less(t, time.Since(begun), 10*time.Second)
	require.NotContains(t, p.stderr.String(), canary)
}
