package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDevRefusesContradictions(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	says(t, exitUsage, environ(), []string{"dev", "--data-dir", dir, "--ephemeral"}, "tes: --data-dir and --ephemeral exclude each other")
	says(t, exitUsage, environ(), []string{"dev", "--reset", "--ephemeral"}, "tes: --reset and --ephemeral exclude each other")
	require.NoDirExists(t, dir)
}

// A taken port is named, with the way out, and nothing is left running. Not even
// the ready file of a run before that was killed.
func TestDevOnATakenPort(t *testing.T) {
	t.Parallel()
	dir, file, taken := dataDir(t), readyFile(t), takenPort(t)
	for name, c := range map[string]struct {
		flag string
		says []string
	}{
		"api": {"--http", []string{"tes: cannot serve on " + taken, "address already in use", "choose another with --http", "port 0 takes any free one"}},
		"bus": {"--nats", []string{"tes: bus: the embedded NATS server cannot listen on " + taken, "choose another address, or port 0 for any free one", "--nats"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(file, []byte(`{"pid": 1, "apiUrl": "http://127.0.0.1:1"}`), 0o600))
			says(t, exitError, environ(), devArgs(file, "--data-dir", dir, c.flag, taken), c.says...)
			require.NoFileExists(t, file, "who waits for it would take a dead address for ours")
			nothingRuns(t, dir)
		})
	}
	// What it left can be used.
	p := start(t, environ(), devArgs(file, "--data-dir", dir)...)
	isReady(t, p, file)
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}

// A ready file that cannot be written is worth no half-started tes.
func TestDevWithoutAPlaceForItsReadyFile(t *testing.T) {
	t.Parallel()
	dir, file := dataDir(t), filepath.Join(t.TempDir(), "no", "such", "ready.json")
	p := launch(environ(), devArgs(file, "--data-dir", dir)...)
	require.Equal(t, exitError, p.wait(t, 2*time.Minute))
	require.Equal(t, "tes: write "+file+": no such file or directory\n", p.stderr.String())
	require.NoDirExists(t, filepath.Join(dir, "pg"), "nothing was started")

	// One in the data directory must wait until that is there.
	file = filepath.Join(dir, "no", "such", "ready.json")
	p = launch(environ(), devArgs(file, "--data-dir", dir)...)
	require.Equal(t, exitError, p.wait(t, 2*time.Minute))
	require.Contains(t, p.stderr.String(), "tes: write "+file+": no such file or directory")
	nothingRuns(t, dir)
}

// account is who PostgreSQL runs as when we are root; else ourselves.
func account(t *testing.T) (uid, gid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		return os.Geteuid(), os.Getegid()
	}
	for _, name := range []string{os.Getenv("TES_PG_USER"), "postgres", "nobody"} {
		if found, err := user.Lookup(name); err == nil {
			uid, err := strconv.Atoi(found.Uid)
			require.NoError(t, err)
			gid, err := strconv.Atoi(found.Gid)
			require.NoError(t, err)
			return uid, gid
		}
	}
	require.FailNow(t, "no account for PostgreSQL")
	return 0, 0
}

// A data directory that is not ours to use is named, and not touched.
func TestDevRefusesAForeignDataDirectory(t *testing.T) {
	t.Parallel()
	uid, gid := account(t)
	setup := func(t *testing.T, version string) (dir, pg string) {
		t.Helper()
		dir = dataDir(t)
		pg = filepath.Join(dir, "pg")
		require.NoError(t, os.MkdirAll(filepath.Join(pg, "base"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(pg, "base", "precious"), []byte("data"), 0o600))
		if version != "" {
			require.NoError(t, os.WriteFile(filepath.Join(pg, "PG_VERSION"), []byte(version+"\n"), 0o600))
		}
		require.NoError(t, filepath.WalkDir(pg, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, uid, gid))
		}))
		return dir, pg
	}
	refused := func(t *testing.T, dir, pg string, texts ...string) {
		t.Helper()
		before := tree(t, pg)
		says(t, exitError, environ("TES_PG_DOWNLOAD=off"), devArgs(readyFile(t), "--data-dir", dir), texts...)
		require.Equal(t, before, tree(t, pg))
		for _, name := range names(t, dir) {
			require.Contains(t, []string{"pg", "lock", "cache"}, name, "made before it looked")
		}
		nothingRuns(t, dir)
	}

	t.Run("another version", func(t *testing.T) {
		dir, pg := setup(t, "9")
		refused(t, dir, pg, "tes: "+pg+" was made by PostgreSQL 9, and no 9 binaries are here", "tes dev --reset", "Nothing was changed")
	})
	t.Run("no cluster at all", func(t *testing.T) {
		dir, pg := setup(t, "")
		refused(t, dir, pg, "tes: "+pg+" is no data directory of PostgreSQL")
	})
	if os.Geteuid() == 0 { // nobody else can give a directory away
		t.Run("another owner", func(t *testing.T) {
			dir, pg := setup(t, "15")
			require.NoError(t, os.Chown(pg, uid+1, gid))
			refused(t, dir, pg, fmt.Sprintf("tes: %s belongs to uid %d, PostgreSQL would run as uid %d: ", pg, uid+1, uid))
		})
	}
}
