package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

var zombieTasks = flag.Int("zombie-tasks", 12, "how many tasks the process that TestZombies stops has in its hands")

// zombieLease is the visibility timeout of what a zombie had.
const zombieLease = time.Second

// patientWeb is the work: a web service that answers a call when the test says so.
// A call is known by its Idempotency-Key, <task>:<attempt>.
type patientWeb struct {
	*httptest.Server
	mu    sync.Mutex
	calls map[string]chan int // the status that it is answered with; guarded by mu
	sent  map[string]bool     // whose answer lies in the socket; guarded by mu
}

func startPatientWeb(t *testing.T) *patientWeb {
	t.Helper()
	w := &patientWeb{calls: map[string]chan int{}, sent: map[string]bool{}}
	w.Server = serveWeb(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		key := r.Header.Get("Idempotency-Key")
		answer := make(chan int, 1)
		w.mu.Lock()
		w.calls[key] = answer
		w.mu.Unlock()
		select {
		case status := <-answer:
			_, attempt, _ := strings.Cut(key, ":")
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(status)
			_, _ = fmt.Fprintf(rw, `{"attempt": %s}`, attempt)
			_ = http.NewResponseController(rw).Flush()
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sent[key] = true
		case <-r.Context().Done():
		}
	}))
	return w
}

// called waits until an attempt at each of the tasks has called.
func (w *patientWeb) called(t *testing.T, attempt int, tasks ...string) {
	t.Helper()
	w.all(t, "called", func(key string) bool { return w.calls[key] != nil }, attempt, tasks)
}

// answered waits until the answers can be read, even by a process that is stopped.
func (w *patientWeb) answered(t *testing.T, attempt int, tasks ...string) {
	t.Helper()
	w.all(t, "been answered", func(key string) bool { return w.sent[key] }, attempt, tasks)
}

func (w *patientWeb) all(t *testing.T, what string, done func(key string) bool, attempt int, tasks []string) {
	t.Helper()
	eventually(t, patience, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, task := range tasks {
			if !done(fmt.Sprintf("%s:%d", task, attempt)) {
				return fmt.Errorf("attempt %d of %s has not %s", attempt, task, what)
			}
		}
		return nil
	})
}

// answer answers them in any order.
func (w *patientWeb) answer(status, attempt int, tasks ...string) {
	tasks = slices.Clone(tasks)
	dice := rand.New(rand.NewPCG(*seed, uint64(attempt))) // the seed is the test's
	dice.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, task := range tasks {
		w.calls[fmt.Sprintf("%s:%d", task, attempt)] <- status
	}
}

// frozen is a process that was stopped.
type frozen struct {
	t  *testing.T
	p  *program
	at time.Time
}

// freeze stops a process as ^Z does.
func freeze(t *testing.T, p *program) frozen {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	return frozen{t, p, time.Now()}
}

// sleeps waits until it has been stopped for two leases.
func (f frozen) sleeps() {
	f.t.Helper()
	eventually(f.t, patience, func() error {
		if left := 2*zombieLease - time.Since(f.at); left > 0 {
			return fmt.Errorf("it sleeps %v more", left)
		}
		return nil
	})
}

func (f frozen) thaw() {
	f.t.Helper()
	require.NoError(f.t, f.p.cmd.Process.Signal(syscall.SIGCONT))
}

// lateResult is what a process says when the fence refuses it.
const lateResult = "result rejected: the lease was lost"

// graveyard is a database and a bus on which a process was stopped beyond its leases.
type graveyard struct {
	t     *testing.T
	world *served
	ears  *recorder
	web   *patientWeb
	token string
	live  string // address of the process that lives
	late  int    // results that came too late
	tasks []string
}

// stopProcess stops a process with tasks in the hands of its executors, and wakes it
// with their results when another has begun each anew; woken is called before those
// attempts come to theirs.
func stopProcess(t *testing.T, exe string, env []string, woken func(*graveyard)) *graveyard {
	t.Helper()
	g := &graveyard{t: t, world: setupServe(t, true), ears: newRecorder(), web: startPatientWeb(t)}
	g.token = g.world.peers.Token("workflow-orchestrator")
	require.NoError(t, g.world.bus.Subscribe(t.Context(), "task.>", natsbus.All, g.ears.hear))
	zombie := startBuild(t, exe, append(env, g.world.env...), "serve", "--http", "127.0.0.1:0")
	api := serving(t, zombie)
	for id, config := range map[string]object{
		"call":   {"executor": "http", "visibilityTimeout": zombieLease.Milliseconds(), "http": object{"url": g.web.URL, "method": "POST"}},
		"remote": {"executor": "worker"},
	} {
		must(t, http.StatusCreated, "PUT", api+definitionsPath+"/"+id, g.token, object{
			"name": id, "version": "1.0.0", "type": "AUTOMATED", "timeout": 120_000, "executionConfig": config,
			"retryPolicy": object{"maxRetries": 3, "retryInterval": 100},
		})
	}
	g.tasks = g.give(api, "call", *zombieTasks)
	g.web.called(t, 1, g.tasks...)
	body := freeze(t, zombie)
	g.live = serving(t, startBuild(t, exe, append(env, g.world.env...), "serve", "--http", "127.0.0.1:0"))
	g.web.called(t, 2, g.tasks...)
	g.web.answer(http.StatusOK, 1, g.tasks...)
	g.web.answered(t, 1, g.tasks...)
	body.sleeps()
	g.wake(body)
	eventually(t, patience, func() error {
		if !strings.Contains(zombie.stderr.String(), lateResult) {
			return errors.New("the zombie has not tried to write")
		}
		return nil
	})
	woken(g)
	g.web.answer(http.StatusOK, 2, g.tasks...)
	settled(t, g.world.dsn)
	g.late = strings.Count(zombie.stderr.String(), lateResult)
	return g
}

// wake lets the zombie hand in a result before its heartbeat can tell it that it is one:
// nobody may touch a lease until a statement that would end some is seen to wait.
func (g *graveyard) wake(zombie frozen) {
	t := g.t
	t.Helper()
	conn, err := pgx.Connect(t.Context(), g.world.dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "LOCK TABLE lease IN SHARE MODE"); err != nil {
			return err
		}
		zombie.thaw()
		return poll(t.Context(), patience, func() error {
			// Not in tx: it would see the same activity for ever.
			waiting, err := collect(t.Context(), g.world.dsn, pgx.RowTo[int], `
				SELECT pid FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%TaskComplete%'`)
			if err == nil && len(waiting) == 0 {
				err = errors.New("the zombie has handed in no result")
			}
			return err
		})
	}))
}

func (g *graveyard) give(api, definition string, n int) (tasks []string) {
	g.t.Helper()
	for i := range n {
		key := fmt.Sprintf("%s-%d", definition, i)
		created := must(g.t, http.StatusCreated, "POST", api+tasksPath, g.token, object{
			"taskDefinitionId": definition, "workflowId": "zombies", "input": object{}, "correlationId": key,
		}, "Idempotency-Key", key)
		tasks = append(tasks, fmt.Sprint(created["taskId"]))
	}
	return tasks
}

// A process is stopped (SIGSTOP) for two leases with work in its hands, and woken with
// results when others have begun that work anew: what it writes is refused, and what
// they write stands. The same with a remote worker, who says what it was answered. And
// the same with a bare River client, whose zombie has the last word.
func TestZombies(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	require.NoError(t, err)
	var ours, rivers object
	passed := t.Run("both", func(t *testing.T) {
		t.Run("tes", func(t *testing.T) {
			t.Parallel()
			ours = zombies(t, exe)
		})
		t.Run("river", func(t *testing.T) {
			t.Parallel()
			rivers = riverZombie(t)
		})
	})
	if !passed {
		return
	}
	ours["river"] = rivers
	say(t, ours)
}

func zombies(t *testing.T, exe string) object {
	t.Helper()
	g := stopProcess(t, exe, nil, func(g *graveyard) {
		running := number(t, g.world.dsn, "SELECT count(*) FROM task WHERE status = 'RUNNING' AND attempt = 2")
		require.Equal(t, len(g.tasks), running, "a zombie ended what another had begun")
	})
	remote := g.stopWorker()
	settled(t, g.world.dsn)
	all := len(g.tasks) + 2
	log := readLog(t, g.world.dsn)
	g.ears.hearAll(t, len(log))
	holdRules(t, g.world.dsn, g.ears)
	g.ears.check(t, log, all)
	stand := number(t, g.world.dsn, "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND attempt = 2 AND output ->> 'attempt' = '2'")
	require.Equal(t, all, stand, "the live attempts' results")
	return object{
		"seed": *seed, "leaseMs": zombieLease.Milliseconds(), "stoppedMs": 2 * zombieLease.Milliseconds(), "tasks": all,
		"lateResultsRefused": g.late, "liveResultsStand": stand, "remoteWorker": remote,
	}
}

// stopWorker stops a remote worker with two leases in its hands. When it wakes, one
// task is in another's hands, and the other has done with the second.
func (g *graveyard) stopWorker() (answers object) {
	t := g.t
	t.Helper()
	tasks := g.give(g.live, "remote", 2)
	exe, err := os.Executable()
	require.NoError(t, err)
	worker := func(name string, visibility time.Duration) *program {
		return startBuild(t, exe, environ(
			instead+"=worker", "WEB="+g.web.URL, "API="+g.live, "TOKEN="+g.world.peers.Token("task-worker"), "NAME="+name,
			fmt.Sprint("VISIBILITY=", visibility.Milliseconds())))
	}
	zombie := worker("zombie", zombieLease)
	g.web.called(t, 1, tasks...)
	body := freeze(t, zombie)
	live := worker("live", patience)
	g.web.called(t, 2, tasks...)
	g.web.answer(http.StatusOK, 2, tasks[1])
	reaches(t, g.live, g.token, tasks[1], "COMPLETED")
	g.web.answer(http.StatusOK, 1, tasks...)
	body.sleeps()
	body.thaw()
	require.Zero(t, zombie.wait(t, patience), zombie.stderr)
	g.web.answer(http.StatusOK, 2, tasks[0])
	require.Zero(t, live.wait(t, patience), live.stderr)
	for task, want := range map[string]string{tasks[0]: "409 LEASE_LOST", tasks[1]: "410 TASK_TERMINAL"} {
		require.Contains(t, zombie.stdout.String(), task+" "+want+"\n")
		require.Contains(t, live.stdout.String(), task+" 200 \n")
	}
	return object{"leasedToAnother": "409 LEASE_LOST", "doneByAnother": "410 TASK_TERMINAL"}
}

// beWorker is a remote worker that takes two tasks, calls the web service for each,
// and says what came of it, whatever has happened meanwhile.
func beWorker() error {
	url, token := os.Getenv("API")+"/api/internal/leases", os.Getenv("TOKEN")
	visibility, err := strconv.Atoi(os.Getenv("VISIBILITY"))
	if err != nil {
		return err
	}
	errs := make(chan error)
	for n, taken := 0, 0; taken < 2; n++ {
		status, answer, text, err := ask(context.Background(), "POST", url, token, object{
			"workerId": os.Getenv("NAME"), "requestId": fmt.Sprint(n), "waitMs": 10_000, "maxTasks": 2 - taken,
			"select": []object{{"queue": "task-execution-automated", "visibilityTimeout": visibility}},
		})
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %s %w", status, text, err)
		}
		for _, l := range answer["leases"].([]any) {
			taken++
			go func() { errs <- work(l.(object), url, token) }()
		}
	}
	return errors.Join(<-errs, <-errs)
}

func work(lease object, url, token string) error {
	task := lease["message"].(object)["taskId"]
	status, output, err := call(os.Getenv("WEB"), fmt.Sprintf("%v:%v", task, lease["attempt"]))
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("%d %w", status, err)
	}
	status, answer, _, err := ask(context.Background(), "POST", fmt.Sprintf("%s/%v/complete", url, lease["leaseToken"]), token, object{"output": output})
	if answer["code"] == nil {
		answer = object{"code": ""}
	}
	fmt.Printf("%v %d %v\n", task, status, answer["code"])
	return err
}

// call calls the web service, for however long.
func call(web, key string) (status int, answer object, err error) {
	request, err := http.NewRequest("POST", web, nil)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Idempotency-Key", key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return response.StatusCode, answer, json.NewDecoder(response.Body).Decode(&answer)
}
