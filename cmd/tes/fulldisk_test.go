package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// fillable makes the disk under the tasks one that can be filled and emptied. Root gets a
// small file system of its own for them. Everybody else gets what the server says then, in
// its own words, from a trigger.
func fillable(t *testing.T, pool *pgxpool.Pool) (fill, empty func()) {
	t.Helper()
	do := func(statement string) {
		t.Helper()
		_, err := pool.Exec(context.Background(), statement)
		require.NoError(t, err)
	}
	if dir, ok := smallDisk(t, pool); ok {
		space := fmt.Sprintf("small_%d", os.Getpid())
		do("CREATE TABLESPACE " + space + " LOCATION '" + dir + "'")
		do("ALTER TABLE task SET TABLESPACE " + space)
		filler := filepath.Join(dir, "filler")
		empty = func() { _ = os.Remove(filler) }
		t.Cleanup(func() {
			empty()
			do("ALTER TABLE task SET TABLESPACE pg_default")
			do("DROP TABLESPACE " + space)
		})
		return func() {
			file, err := os.Create(filler)
			require.NoError(t, err)
			defer file.Close()
			for err == nil {
				_, err = file.Write(make([]byte, 4<<10))
			}
			require.ErrorIs(t, err, syscall.ENOSPC)
		}, empty
	}
	do(`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = '53100', HINT = 'Check free disk space.';
	END $$`)
	return func() {
		do("CREATE TRIGGER full_disk BEFORE INSERT ON task FOR EACH ROW EXECUTE FUNCTION full_disk()")
	}, func() { do("DROP TRIGGER full_disk ON task") }
}

// smallDisk is an empty file system of some megabytes that belongs to the server's account.
func smallDisk(t *testing.T, pool *pgxpool.Pool) (dir string, ok bool) {
	t.Helper()
	var data string
	require.NoError(t, pool.QueryRow(t.Context(), "SHOW data_directory").Scan(&data))
	info, err := os.Stat(data)
	if err != nil || os.Geteuid() != 0 || runtime.GOOS != "linux" {
		return "", false // it is another machine's, or we may not
	}
	mount, err := os.MkdirTemp("", "tes-disk-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.Remove(mount) })
	require.NoError(t, os.Chmod(mount, 0o755))
	if err := mountSmall(mount); err != nil {
		return "", false // root without the right to
	}
	t.Cleanup(func() { _ = unmount(mount) })
	owner := info.Sys().(*syscall.Stat_t)
	dir = filepath.Join(mount, "space")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Chown(dir, int(owner.Uid), int(owner.Gid)))
	return dir, true
}

// The disk of the database is full. Callers are told 503; /readyz says so, with the reason;
// the log has the server's words once and not for each of them; and when there is room again
// all is well, without anybody who had to try.
func TestDiskOfTheDatabaseIsFull(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	fill, empty := fillable(t, pool)
	b := setupServeOn(t, dbtest.URL(pool), false)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	task := noop("w")
	task["input"] = object{"text": noise(20_000)}
	must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, task)
	readyz(t, api, http.StatusOK, `"database":"ok"`)

	fill()
	refused := 0
	eventually(t, patience, func() error {
		status, _, text, err := ask(t.Context(), "POST", api+tasksPath, orchestrator, task)
		require.NoError(t, err)
		if status == http.StatusServiceUnavailable {
			refused++
			return nil
		}
		return fmt.Errorf("%d %s", status, text)
	})
	readyz(t, api, http.StatusServiceUnavailable, "its disk is full")
	for range 100 {
		must(t, http.StatusServiceUnavailable, "POST", api+tasksPath, orchestrator, task)
	}
	require.Contains(t, p.stderr.String(), "No space left on device")
	require.Less(t, strings.Count(p.stderr.String(), "No space left on device"), 30, "each of them is in the log")

	empty()
	readyz(t, api, http.StatusOK, `"database":"ok"`)
	made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, task)
	reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
}

// Somebody holds a lock on the table of tasks: who calls is told so soon, and with the
// reason in the log; /readyz says it.
func TestTableOfTasksIsLocked(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	b := setupServeOn(t, dbtest.URL(pool), false)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), "LOCK TABLE task IN SHARE MODE")
	require.NoError(t, err)
	readyz(t, api, http.StatusServiceUnavailable, "a lock on its tables is held by another session")
	must(t, http.StatusServiceUnavailable, "POST", api+tasksPath, orchestrator, noop("w"))
	require.Contains(t, p.stderr.String(), "a table is locked by another session")
	require.NotContains(t, p.stderr.String(), "context deadline exceeded")

	require.NoError(t, tx.Rollback(t.Context()))
	readyz(t, api, http.StatusOK, `"database":"ok"`)
	made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
	reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
}

// noise is text that does not shrink.
func noise(bytes int) string {
	raw := make([]byte, bytes/2)
	for i := range raw {
		raw[i] = byte(rand.Uint32())
	}
	return hex.EncodeToString(raw)
}
