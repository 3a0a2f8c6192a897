package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

// withPostgresCmd runs a command with a throw-away PostgreSQL, so that a whole test run shares one
// cluster.
type withPostgresCmd struct {
	Command []string `arg:"" passthrough:"" help:"The command; it finds the server in TES_TEST_DATABASE_URL."`
}

// Run runs the command and exits with its exit code.
func (c *withPostgresCmd) Run(s *cmdContext) error {
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}

	if len(command) == 0 {
		return &usageError{"which command? tes with-postgres -- go test ./..."}
	}

	cluster, err := localpg.Start(s.ctx, localpg.Config{
		DataDir: s.cfg.DataDir, Throwaway: true, Unsafe: true, Owner: "tes with-postgres", BinDir: s.cfg.PGBin, Version: s.cfg.PGVersion,
		User: s.cfg.PGUser, NoSystem: s.cfg.PGSystem == "off", NoDownload: s.cfg.PGDownload == "off", Mirror: s.cfg.PGMirror,
		Settings: map[string]string{"max_connections": "500", "shared_buffers": "256MB"},
	})
	if err != nil {
		return err
	}

	child := exec.CommandContext(s.ctx, command[0], command[1:]...)
	child.Env = append(os.Environ(), "TES_TEST_DATABASE_URL="+cluster.DatabaseURL("postgres"))
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, s.stdout, s.stderr
	child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
	child.WaitDelay = 30 * time.Second
	err = child.Run()
	stopped := cluster.Stop(context.WithoutCancel(s.ctx))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		return &childError{code, stopped}
	}

	return join(err, stopped)
}

// childError is the exit code of the command, which has reported its failure itself.
type childError struct {
	code    int
	stopped error // the error of stopping the server, if any
}

func (e *childError) Error() string { return "the command failed" }
