package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

// devCmd is tes dev: everything on one machine.
type devCmd struct {
	DataDir   string `help:"Keep the data in DIR." placeholder:"DIR"`
	Ephemeral bool   `help:"Keep no data: use a temporary directory, and remove it at the end."`
	Reset     bool   `help:"Start with an empty data directory: move its old contents to a directory beside it."`
	HTTP      string `name:"http" help:"Serve the API on HOST:PORT; port 0 is any free one. Default: TES_HTTP, else 127.0.0.1:8080." placeholder:"HOST:PORT"`
	NATS      string `name:"nats" default:"127.0.0.1:4222" help:"Open the embedded bus on HOST:PORT; port 0 is any free one. Default: 127.0.0.1:4222." placeholder:"HOST:PORT"`
	ReadyFile string `help:"When everything is ready, write the addresses, tokens and files to FILE, as JSON." placeholder:"FILE"`
}

// ready is the content of --ready-file; scripts rely on it.
type ready struct {
	PID            int               `json:"pid"`
	APIURL         string            `json:"apiUrl"`
	NATSURL        string            `json:"natsUrl"`
	DatabaseURL    string            `json:"databaseUrl"`
	RiverUIURL     string            `json:"riverUiUrl"`
	OpenAPIURL     string            `json:"openapiUrl"`
	NeighboursURL  string            `json:"neighboursUrl"`
	SigningKeyFile string            `json:"signingKeyFile"`
	CallbackSecret string            `json:"callbackSecret"`
	Tokens         map[string]string `json:"tokens"`
}

// callers are the services for which tokens are printed.
var callers = []string{"workflow-orchestrator", "ui-framework", "monitoring-service", "task-worker", "error-handler"}

// Run starts everything, prints the addresses, and stops everything at Ctrl-C.
func (c *devCmd) Run(s *cmdContext) error {
	if err := c.check(s); err != nil {
		return err
	}

	dir, err := c.place(s)
	if err != nil {
		return err
	}

	if c.ReadyFile != "" {
		if err := c.checkReadyFile(dir); err != nil {
			return err
		}
		_ = os.Remove(c.ReadyFile) // the file of a killed run would mislead readers
	}

	if c.Reset {
		aside, err := localpg.MoveAside(dir, "tes dev --reset")
		if err != nil {
			return err
		}
		if aside != "" {
			s.printf("The contents of %s are now in %s.\n", dir, aside)
		}
	}

	if !signal.Ignored(syscall.SIGHUP) { // ignored under nohup; otherwise the terminal was closed
		ctx, stop := signal.NotifyContext(s.ctx, syscall.SIGHUP)
		defer stop()
		s.ctx = ctx
	}

	begun := time.Now()
	l, err := startLocal(s, localConfig{
		dataDir: dir, throwaway: c.Ephemeral, http: c.HTTP, nats: c.NATS, peers: "127.0.0.1:9090", owner: "tes dev",
	})
	if err != nil {
		return err
	}

	if err := c.announce(s, l, begun); err != nil {
		return join(err, l.stop(context.WithoutCancel(s.ctx)))
	}

	// From here on, only a failure of PostgreSQL is an error; a signal and an order are the wanted
	// end.
	ended := c.untilStopped(s, l)
	s.printf("\nStopping.\n")
	if c.ReadyFile != "" {
		_ = os.Remove(c.ReadyFile)
	}

	return join(ended, l.stop(context.WithoutCancel(s.ctx)))
}

// check rejects flags that contradict each other or the settings, and fills in the address.
func (c *devCmd) check(s *cmdContext) error {
	if c.DataDir != "" && c.Ephemeral {
		return &usageError{"--data-dir and --ephemeral exclude each other"}
	}
	if c.Reset && c.Ephemeral {
		return &usageError{"--reset and --ephemeral exclude each other"}
	}
	if s.cfg.PGPort != 0 && c.Ephemeral {
		return &usageError{"TES_PG_PORT has no effect with --ephemeral, whose PostgreSQL listens on a socket only: leave out one of the two"}
	}
	if c.HTTP == "" {
		c.HTTP = s.cfg.httpAddress()
	}

	for flag, address := range map[string]string{"--http": c.HTTP, "--nats": c.NATS} {
		if err := checkAddress(address); err != nil {
			return &usageError{flag + ": " + err.Error()}
		}
	}

	return nil
}

// announce writes the ready file and prints the banner.
func (c *devCmd) announce(s *cmdContext, l *local, begun time.Time) error {
	// The file before the banner: scripts wait for the file.
	r := l.ready(s.cfg)
	if c.ReadyFile != "" {
		text, err := indented(r)
		if err == nil {
			err = writeWhole(c.ReadyFile, text, 0o600)
		}
		if err != nil {
			return err
		}
	}

	banner(s, l, r, time.Since(begun))
	return nil
}

// untilStopped waits for a signal, an order to stop, or the end of PostgreSQL, which is an error.
func (c *devCmd) untilStopped(s *cmdContext, l *local) error {
	var died <-chan struct{} // nil, and so never ready, for the operator's own database
	if l.cluster != nil {
		died = l.cluster.Done()
	}

	select {
	case <-s.ctx.Done():
	case <-l.service.ordered:
	case <-died:
		return fmt.Errorf("PostgreSQL ended: %w", l.cluster.Err())
	}

	return nil
}

// checkReadyFile reports a file that cannot be written before anything is started. A file inside
// the data directory passes: that directory may not exist yet.
func (c *devCmd) checkReadyFile(dataDir string) error {
	// By trying, and not by the mode: a file system may be read-only, or full.
	file, err := tempBeside(c.ReadyFile)
	if err != nil {
		path, absErr := filepath.Abs(c.ReadyFile)
		if absErr == nil && errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, dataDir+string(filepath.Separator)) {
			return nil
		}
		return err
	}

	_ = file.Close()
	return os.Remove(file.Name())
}

// place is the absolute path of the data directory.
func (c *devCmd) place(s *cmdContext) (dir string, err error) {
	if dir = c.DataDir; dir == "" {
		dir = s.cfg.DataDir
	}

	if dir == "" {
		if dir, err = localpg.DefaultBaseDir(); err != nil {
			return "", err
		}
	}

	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}

	return dir, nil
}

func (l *local) ready(cfg Config) ready {
	r := ready{
		PID: os.Getpid(), APIURL: l.service.url, NATSURL: l.bus.ClientURL(), DatabaseURL: l.databaseAt,
		RiverUIURL: l.service.url + "/riverui/", OpenAPIURL: l.service.url + "/openapi.yaml",
		NeighboursURL: l.peers.URL(), SigningKeyFile: l.keyFile, CallbackSecret: l.secret, Tokens: map[string]string{},
	}

	// Other programs need the URL of the operator's bus. ClientURL is for the embedded bus.
	if cfg.NATSURL != "" {
		r.NATSURL = cfg.NATSURL
	}

	for _, caller := range callers {
		r.Tokens[caller] = l.peers.Token(caller)
	}

	return r
}

func banner(s *cmdContext, l *local, r ready, took time.Duration) {
	s.printf("tes is ready after %.1f s. Ctrl-C stops it", took.Seconds())
	if l.cluster != nil {
		s.printf("; its data is in %s", l.dir)
	}

	s.printf(".\n\n")

	for _, line := range [][2]string{
		{"API", r.APIURL},
		{"OpenAPI", r.OpenAPIURL},
		{"River UI", r.RiverUIURL + " (log in with a token: monitoring-service looks, workflow-orchestrator acts)"},
		{"Bus", r.NATSURL},
		{"Database", r.DatabaseURL},
		{"Fakes", r.NeighboursURL + "/_standin/"},
		{"Signing key", r.SigningKeyFile},
		{"Callbacks", "signed with " + r.CallbackSecret},
	} {
		s.printf("  %-12s %s\n", line[0], line[1])
	}

	s.printf(`
Tokens, good for an hour (tes token --key %s makes others):

`, r.SigningKeyFile)

	for _, caller := range callers {
		s.printf("  %-22s %s\n", caller, r.Tokens[caller])
	}

	s.printf(`
Try:

  export TOKEN=%[2]s
  curl -s %[1]s/api/internal/tasks -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{"taskDefinitionId": "hello", "workflowId": "wf-1", "taskType": "AUTOMATED", "executionConfig": {"executor": "noop"}, "input": {"name": "world"}}'
  curl -s %[1]s/api/internal/tasks/workflow/wf-1 -H "Authorization: Bearer $TOKEN"
  curl -s %[1]s/api/internal/tasks/metrics -H "Authorization: Bearer %[3]s"

`, r.APIURL, r.Tokens["workflow-orchestrator"], r.Tokens["monitoring-service"])
}
