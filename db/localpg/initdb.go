package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// initdb makes the data directory under another name and renames it when it is complete, so
// that the result of a killed initdb is never used as a cluster.
func (c *Cluster) initdb(ctx context.Context) (err error) {
	if err := c.checkPasswd(); err != nil {
		return err
	}

	// Left by killed runs.
	for _, pattern := range []string{".new-*", ".pw-*"} {
		old, _ := filepath.Glob(c.place.data + pattern)
		for _, path := range old {
			_ = os.RemoveAll(path)
		}
	}

	name := randomHex(4)
	side, pwfile := c.place.data+".new-"+name, c.place.data+".pw-"+name
	defer func() {
		_ = os.Remove(pwfile)
		if err != nil {
			_ = os.RemoveAll(side)
		}
	}()

	if err := os.Mkdir(side, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}

	if err := c.machine.give(side, c.account); err != nil {
		return err
	}

	// --no-sync is safe: postgres writes everything again at its first checkpoint, and the
	// cluster is empty until then.
	args := []string{
		"-D", side, "-U", superuser, "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions",
		"--auth-local=trust",
	}

	if c.cfg.Throwaway {
		args = append(args, "--auth-host=reject", "--wal-segsize=1")
	} else {
		// A file of the account: after the change of user, initdb may not be able to open
		// /dev/fd/3.
		if c.password, err = c.place.password(); err != nil {
			return err
		}

		if err := os.WriteFile(pwfile, []byte(c.password+"\n"), 0o600); err != nil {
			return fmt.Errorf("hand the password to initdb: %w", err)
		}

		if err := c.machine.give(pwfile, c.account); err != nil {
			return err
		}

		args = append(args, "--auth-host=scram-sha-256", "--pwfile="+pwfile)
	}

	if err := c.runInitdb(ctx, args); err != nil {
		return err
	}

	if err := os.Rename(side, c.place.data); err != nil {
		return fmt.Errorf("put the data directory in its place: %w", err)
	}

	return nil
}

// runInitdb runs initdb. If ctx ends, initdb alone gets SIGTERM: initdb then ends its own
// child and leaves nothing behind. A bootstrap process that gets the signal directly would
// leave its shared memory behind.
func (c *Cluster) runInitdb(ctx context.Context, args []string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}

	var out bytes.Buffer
	cmd := exec.Command(c.binaries.path("initdb"), args...)
	cmd.Dir = "/"
	cmd.Env = childEnv(c.binaries.dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = child(c.account, syscall.SIGTERM)
	p, err := run(cmd)
	if err != nil {
		return c.account.explain(fmt.Errorf("start initdb: %w", err))
	}

	c.machine.at(stageInitdb)

	select {
	case <-p.done:
	case <-ctx.Done():
		p.signal(syscall.SIGTERM)

		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-p.pid, syscall.SIGKILL)
			<-p.done
		}

		return fmt.Errorf("initdb: %w", context.Cause(ctx))
	}

	if p.err != nil {
		return fmt.Errorf("initdb: %w:\n%s", p.err, lastLines(out.String()))
	}

	return nil
}

// checkPasswd checks that the uid has a name, which only initdb needs, and which a container
// started with --user does not have.
func (c *Cluster) checkPasswd() error {
	uid := strconv.Itoa(c.account.uid)
	if _, err := c.machine.userByID(uid); err != nil {
		return fmt.Errorf("PostgreSQL's initdb wants a name for uid %s, and there is none: "+
			"add a passwd entry, run as root, or set TES_DATABASE_URL", uid)
	}

	return nil
}

// password returns the password of role tes for TCP. The password is made once and kept in
// a file; if the file was deleted, the start gives the role a new password.
func (p *place) password() (string, error) {
	path := filepath.Join(p.base, "password")
	text, err := os.ReadFile(path)
	if password := strings.TrimSpace(string(text)); err == nil && password != "" {
		return password, nil
	}

	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the password: %w", err)
	}

	password := randomHex(16)
	if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the password: %w", err)
	}

	return password, nil
}

// lastLines returns the last 20 lines, which fit into an error message.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}

	return strings.Join(lines, "\n")
}
