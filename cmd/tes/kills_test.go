package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

var (
	kills    = flag.Int("kills", 10, "how many processes TestKills kills")
	stops    = flag.Int("stops", 8, "how many processes TestStops stops")
	restarts = flag.Int("restarts", 5, "how often TestPostgresRestarts restarts PostgreSQL")
	seed     = flag.Uint64("seed", 1, "what chance decides in the tests of this kind")
)

const (
	killRate  = 200 // tasks a second
	killEvery = time.Second
	killFleet = 3
	stopLimit = 20 * time.Second // the default grace
)

// fleet is some processes of serve on one database and one bus, one of which is
// killed now and then.
type fleet struct {
	t     *testing.T
	world *served
	size  int
	exe   string          // the build that they are of; empty: this one
	arm   func() []string // more environment of the next one; nil: none
	token string
	ears  *recorder
	calls atomic.Int64 // of the web service

	broken     atomic.Int64 // answers from 500 on
	unanswered atomic.Int64 // requests to which no answer came

	refused sync.Map // the flaky tasks that it has refused once

	mu     sync.Mutex
	dice   *rand.Rand           // guarded by mu
	alive  []*member            // guarded by mu
	away   *member              // the one of them that says it is not ready; nil: none; guarded by mu
	killed map[string]time.Time // by process id; guarded by mu
}

type member struct {
	*program
	url string
}

func (f *fleet) launch() *member {
	env := slices.Clone(f.world.env)
	if f.arm != nil {
		env = append(env, f.arm()...)
	}
	exe := f.exe
	if exe == "" {
		var err error
		exe, err = os.Executable()
		require.NoError(f.t, err)
	}
	p := startBuild(f.t, exe, env, "serve", "--http", "127.0.0.1:0")
	if f.arm == nil {
		return &member{p, serving(f.t, p)}
	}
	url, dead := servingOrDead(f.t, p) // it may lead, and die of it, before it serves
	if dead {
		url = "http://" + nobodysPort(f.t)
	}
	return &member{p, url}
}

// any is one that was alive a moment ago, and ready.
func (f *fleet) any() *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	ready := slices.DeleteFunc(slices.Clone(f.alive), func(m *member) bool { return m == f.away })
	return ready[f.dice.IntN(len(ready))]
}

// send asks any of them, and counts what no caller should see.
func (f *fleet) send(method, path, token string, body any, headers ...string) (status int, answer object, text []byte, err error) {
	status, answer, text, err = ask(f.t.Context(), method, f.any().url+path, token, body, headers...)
	switch {
	case err != nil:
		f.unanswered.Add(1)
	case status >= http.StatusInternalServerError:
		f.broken.Add(1)
	}
	return status, answer, text, err
}

// kill ends one of them with SIGKILL, and has another take its place.
func (f *fleet) kill(which int) {
	f.t.Helper()
	victim := f.signal(which, syscall.SIGKILL)
	at := time.Now()
	<-victim.done
	f.mu.Lock()
	f.killed[strconv.Itoa(victim.cmd.Process.Pid)] = at
	f.mu.Unlock()
	f.replace(which)
}

// stop asks one of them to stop, has another take its place, and returns how long
// it took. It is asked nothing more once it says that it is not ready, as a load balancer
// would have it.
func (f *fleet) stop(which int) time.Duration {
	f.t.Helper()
	begun := time.Now()
	leaving := f.signal(which, syscall.SIGTERM)
	eventually(f.t, patience, func() error {
		status, _, _, err := ask(f.t.Context(), "GET", leaving.url+"/readyz", "", nil)
		if err == nil && status != http.StatusServiceUnavailable {
			return fmt.Errorf("it says %d", status)
		}
		return err
	})
	f.mu.Lock()
	f.away = leaving
	f.mu.Unlock()
	require.Equal(f.t, exitOK, leaving.wait(f.t, patience), leaving.stderr)
	took := time.Since(begun)
	f.replace(which)
	return took
}

func (f *fleet) signal(which int, sig syscall.Signal) *member {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NoError(f.t, f.alive[which].cmd.Process.Signal(sig))
	return f.alive[which]
}

func (f *fleet) replace(which int) {
	f.t.Helper()
	next := f.launch()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alive[which] = next
}

// ask asks any of them until one answers.
func (f *fleet) ask(method, path string, body any, headers ...string) (answer object, err error) {
	err = poll(f.t.Context(), 2*time.Minute, func() error {
		status, got, text, err := f.send(method, path, f.token, body, headers...)
		switch {
		case err != nil:
			return err // it was killed
		case status == http.StatusServiceUnavailable:
			return errRefused
		case status >= 300:
			f.t.Errorf("%s %s: %d %s", method, path, status, text)
		}
		answer = got
		return nil
	})
	return answer, err
}

// startFleet starts the processes, and defines what the tasks are.
func startFleet(t *testing.T, world *served, change ...func(*fleet)) *fleet {
	t.Helper()
	f := &fleet{
		t: t, world: world, size: killFleet, ears: newRecorder(), killed: map[string]time.Time{},
		dice: rand.New(rand.NewPCG(*seed, 1)), // the seed is the test's
	}
	for _, fn := range change {
		fn(f)
	}
	f.token = f.world.peers.Token("workflow-orchestrator")
	require.NoError(t, f.world.bus.Subscribe(t.Context(), "task.>", natsbus.All, f.ears.hear))
	web := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		f.calls.Add(1)
		if r.URL.Path == "/flaky" {
			if _, again := f.refused.LoadOrStore(r.Header.Get("X-Tes-Task-Id"), true); !again {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return
		}
		select {
		case <-time.After(200 * time.Millisecond): // long enough to be killed in
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, `{"done": true}`)
	}))
	for range f.size {
		f.alive = append(f.alive, f.launch())
	}
	for id, definition := range map[string]object{
		"noop":       {"type": "AUTOMATED", "executionConfig": object{"executor": "noop"}},
		"expression": {"type": "AUTOMATED", "executionConfig": object{"executor": "expression", "expression": []object{{"name": "twice", "value": "input.n + input.n"}}}},
		"call":       {"type": "AUTOMATED", "executionConfig": object{"executor": "http", "http": object{"url": web.URL, "method": "POST"}}},
		"invoice":    {"type": "INTEGRATION", "executionConfig": object{"integration": object{"type": "REST", "method": "create_invoice", "instance": "peer"}}},
		"remote":     {"type": "AUTOMATED", "executionConfig": object{"executor": "worker"}},
		"review":     {"type": "MANUAL", "executionConfig": object{"assignmentRules": object{"role": "clerk", "defaultGroup": "clerks"}}},
		"flaky": {
			"type": "AUTOMATED", "retryPolicy": object{"maxRetries": 3, "retryInterval": 500},
			"executionConfig": object{"executor": "http", "http": object{"url": web.URL + "/flaky", "method": "POST"}},
		},
	} {
		definition["name"], definition["version"] = id, "1.0.0"
		_, err := f.ask("PUT", definitionsPath+"/"+id, definition)
		require.NoError(t, err)
	}

	return f
}

// storm ends one process after the other while tasks are offered, and waits until
// all is over.
func (f *fleet) storm(ends int, end func(which int)) (tasks int) {
	t := f.t
	t.Helper()
	tasks = ends * killRate * int(killEvery/time.Second)
	var given sync.WaitGroup
	lost := make(chan error, tasks)
	given.Go(func() { f.offer(tasks, lost) })
	stop := make(chan struct{})
	var working sync.WaitGroup
	for w := range 4 {
		working.Go(func() { f.work(fmt.Sprint("remote-", w), stop) })
	}
	for _, person := range []string{"clerk-1", "clerk-2"} { // whom the User Service has for the role
		working.Go(func() { f.review(person, stop) })
	}
	dice := rand.New(rand.NewPCG(*seed, 0)) // the seed is the test's
	clock := time.NewTicker(killEvery)
	defer clock.Stop()
	for range ends {
		<-clock.C
		end(dice.IntN(f.size))
	}
	given.Wait()
	close(lost)
	for err := range lost {
		require.NoError(t, err)
	}
	settled(t, f.world.dsn)
	close(stop)
	working.Wait()
	return tasks
}

// check holds the database and the bus against each other, and returns what there
// is to say.
func (f *fleet) check(tasks int, status string) object {
	t := f.t
	t.Helper()
	log := readLog(t, f.world.dsn)
	f.ears.hearAll(t, len(log))
	holdRules(t, f.world.dsn, f.ears)
	require.Equal(t, tasks, number(t, f.world.dsn, "SELECT count(*) FROM task"))
	require.Equal(t, tasks, number(t, f.world.dsn, "SELECT count(*) FROM task WHERE status = $1::task_status", status))
	duplicates := f.ears.check(t, log, tasks)
	return object{
		"seed": *seed, "tasks": tasks, "lost": 0, "stuck": 0, "events": len(log), "eventsLost": 0, "duplicates": duplicates,
	}
}

// checkLanes checks a storm, which went over all lanes.
func (f *fleet) checkLanes(tasks int) object {
	t := f.t
	t.Helper()
	result := f.check(tasks, "COMPLETED")
	result["webCalls"] = f.calls.Load()
	for lane, sql := range map[string]string{
		"byPeople": "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND type = 'MANUAL'",
		"retries":  "SELECT count(*) FROM task_event WHERE type = 'retry'",
	} {
		result[lane] = number(t, f.world.dsn, sql)
		require.Positive(t, result[lane], lane)
	}
	return result
}

// say prints what came of a test as a line of JSON.
func say(t *testing.T, result object) {
	t.Helper()
	result["test"] = t.Name()
	line, err := json.Marshal(result)
	require.NoError(t, err)
	fmt.Fprintf(os.Stdout, "%s\n", line)
}

// Three processes, of which one is killed each second under two hundred tasks a
// second, over all lanes, people's and retries' among them: nothing is lost, nothing is stuck, every event is told, and what a killed
// process had is picked up in time.
func TestKills(t *testing.T) {
	t.Parallel()
	f := startFleet(t, setupServe(t, true))
	tasks := f.storm(*kills, f.kill)
	result := f.checkLanes(tasks)
	begun, claimed := f.pickups()
	result["kills"], result["leasesExpired"], result["claimsLost"] = *kills, len(begun), len(claimed)
	for name, all := range map[string][]pickup{"pickup": begun, "claimPickup": claimed} {
		result[name+"P50Ms"], result[name+"P99Ms"] = quantile(afters(all), 0.5).Milliseconds(), quantile(afters(all), 0.99).Milliseconds()
	}
	say(t, result)
	require.NotEmpty(t, begun, "nothing was in the middle")
	requirePickups(t, "attempts that had begun", begun, pickupLimit)
	requirePickups(t, "claims that had not begun", claimed, claimPickupLimit)
}

// The same, but they are asked to stop. No caller who follows readiness sees a 5xx, or
// waits for an answer in vain; no attempt is spent, and each is gone within its grace.
func TestStops(t *testing.T) {
	t.Parallel()
	world := setupServe(t, true)
	world.env = append(world.env, "TES_DRAIN_DELAY=2s") // for this test to see it, on a machine of any speed
	f := startFleet(t, world)
	var longest time.Duration
	tasks := f.storm(*stops, func(which int) { longest = max(longest, f.stop(which)) })
	result := f.checkLanes(tasks)
	result["stops"], result["longestStopMs"] = *stops, longest.Milliseconds()
	result["answers5xx"], result["unanswered"] = f.broken.Load(), f.unanswered.Load()
	say(t, result)
	require.Zero(t, f.broken.Load(), "answers from 500 on")
	require.Zero(t, f.unanswered.Load(), "requests without an answer")
	require.LessOrEqual(t, longest, stopLimit)
	begun, _ := f.pickups()
	require.Empty(t, begun, "no lease ran out")
	require.Equal(t, tasks, number(t, f.world.dsn, "SELECT sum(attempt - failures)::integer FROM task"), "no attempt was spent")
}

// PostgreSQL is restarted under load, by turns in order and in the middle of what it
// does: callers see 503 at worst, and nothing is lost.
func TestPostgresRestarts(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort(nobodysPort(t))
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	cfg := localpg.Config{
		Port: number, DataDir: dataDir(t), Owner: "tes test", BinDir: os.Getenv("TES_PG_BIN"), Version: os.Getenv("TES_PG_VERSION"),
		User: os.Getenv("TES_PG_USER"), NoSystem: os.Getenv("TES_PG_SYSTEM") == "off", Mirror: os.Getenv("TES_PG_MIRROR"),
	}
	start := func() *localpg.Cluster {
		pg, err := localpg.Start(t.Context(), cfg)
		require.NoError(t, err)
		return pg
	}
	pg := start()
	t.Cleanup(func() { require.NoError(t, pg.Stop(context.Background())) })
	url := pg.URL()
	require.NoError(t, migrations.Up(t.Context(), url))
	f := startFleet(t, setupServeOn(t, url, true))
	n := 0
	tasks := f.storm(*restarts, func(int) {
		if n++; n%2 == 0 {
			require.NoError(t, syscall.Kill(postmaster(t, cfg.DataDir), syscall.SIGQUIT))
			<-pg.Done()
		}
		_ = pg.Stop(t.Context()) // it says so if it was not asked to end
		pg = start()
		require.Equal(t, url, pg.URL())
	})
	result := f.checkLanes(tasks)
	result["restarts"] = *restarts
	say(t, result)
}

// offer gives tasks at a steady pace, each under its own key until it is accepted.
func (f *fleet) offer(tasks int, lost chan<- error) {
	pace := time.NewTicker(time.Second / killRate)
	defer pace.Stop()
	kinds := []string{"noop", "expression", "call", "invoice", "remote", "review", "flaky"}
	var all sync.WaitGroup
	defer all.Wait()
	for i := range tasks {
		<-pace.C
		all.Go(func() {
			if _, err := f.give(i, kinds[i%len(kinds)]); err != nil {
				lost <- err
			}
		})
	}
}

// give hands in one task until it is accepted.
func (f *fleet) give(i int, kind string) (task any, err error) {
	key, input := fmt.Sprintf("key-%d", i), object{"n": i}
	if kind == "invoice" {
		input = object{"contact_id": "CONT-1"}
	}
	created, err := f.ask("POST", tasksPath, object{
		"taskDefinitionId": kind, "workflowId": fmt.Sprintf("kills-%d", i%7), "input": input, "correlationId": key,
	}, "Idempotency-Key", key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return created["taskId"], nil
}

// work is a remote worker of whichever process answers.
func (f *fleet) work(id string, stop <-chan struct{}) {
	token := f.world.peers.Token("task-worker")
	post := func(path string, body object) (int, object) {
		status, answer, _, err := f.send("POST", "/api/internal/leases"+path, token, body)
		if err != nil {
			return 0, nil
		}
		return status, answer
	}
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		request := object{"workerId": id, "requestId": fmt.Sprint(n), "waitMs": 1000, "maxTasks": 10}
		var answer object
		for status := 0; status != http.StatusOK && f.t.Context().Err() == nil; {
			status, answer = post("", request) // who was killed does not answer; another is asked the same
		}
		leases, _ := answer["leases"].([]any)
		for _, l := range leases {
			for status := 0; status == 0 || status == http.StatusServiceUnavailable; {
				status, _ = post("/"+fmt.Sprint(l.(object)["leaseToken"])+"/complete", object{"output": object{"by": id}})
			}
		}
	}
}

// review is a person who looks at what she has and claims and completes it, by whichever
// process answers. What comes of a call that is not answered, her list says.
func (f *fleet) review(person string, stop <-chan struct{}) {
	token := f.world.peers.Token("ui-framework")
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return
		case <-pace.C:
		}
		for _, status := range []string{"ASSIGNED", "RUNNING"} {
			_, list, _, err := f.send("GET", tasksPath+"/user/"+person+"?limit=200&status="+status, token, nil)
			if err != nil {
				continue
			}
			mine, _ := list["items"].([]any)
			for _, task := range mine {
				path := fmt.Sprintf("%s/%v/", tasksPath, task.(object)["taskId"])
				for _, verb := range []string{"claim", "complete"} {
					code, _, text, err := f.send("POST", path+verb, token, object{"userId": person})
					if err != nil || code == http.StatusServiceUnavailable {
						break
					}
					if code != http.StatusOK && code != http.StatusConflict { // it was heard, and not answered
						f.t.Errorf("%s %s by %s: %d %s", verb, path, person, code, text)
					}
				}
			}
		}
	}
}
