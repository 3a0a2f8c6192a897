package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// The fake peer services and the service are two programs that find each other by what the first
// prints, and an image without a shell can say how the second is.
func TestNeighboursAsACommand(t *testing.T) {
	t.Parallel()
	peers := start(t, environ(), "neighbours", "--http", "127.0.0.1:0")
	printed := regexp.MustCompile(`TES_NEIGHBOURS_URL=(\S+)\s+TES_SERVICE_TOKEN=(\S+)[\s\S]*workflow-orchestrator\s+(\S+)[\s\S]*error-handler\s+\S+\n`)
	var found []string
	eventually(t, patience, func() error {
		if found = printed.FindStringSubmatch(peers.stdout.String()); found == nil {
			return errors.New("it has not said where it is")
		}
		return nil
	})
	env := environ("TES_DATABASE_URL="+dbtest.URL(dbtest.Get(t)), "TES_NEIGHBOURS_URL="+found[1], "TES_SERVICE_TOKEN="+found[2], "TES_DATA_DIR="+t.TempDir(), "TES_LOG_LEVEL=info")
	service := start(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, service)
	must(t, http.StatusOK, "GET", api+tasksPath+"/workflow/none", found[3], nil)

	address := strings.TrimPrefix(api, "http://")
	for _, args := range [][]string{{"healthcheck"}, {"healthcheck", "--ready"}, {"healthcheck", "--url", api + "/"}} {
		code, stdout, stderr := tes(t, environ("TES_HTTP="+address), args...)
		require.Equal(t, exitOK, code, stderr)
		require.Contains(t, stdout, "ok")
	}
	_, port, _ := strings.Cut(address, ":")
	code, _, stderr := tes(t, environ("TES_HTTP=0.0.0.0:"+port), "healthcheck")
	require.Equal(t, exitOK, code, stderr)

	require.Equal(t, exitOK, service.stop(t), service.stderr)
	says(t, exitError, environ("TES_HTTP="+address), []string{"healthcheck"}, "tes: no answer: ")
	require.Equal(t, exitOK, peers.stop(t), peers.stderr)
}

// A wrong login, or a database that nobody has migrated, is told for what it is.
func TestServeWithTheWrongLogin(t *testing.T) {
	t.Parallel()
	as := func(dsn, role string) string {
		u, err := url.Parse(dsn)
		require.NoError(t, err)
		u.User = url.User(role)
		return u.String()
	}
	fresh := freshDatabase(t)
	pool := dbtest.Get(t)
	for role, of := range map[string]string{"wrong_login_service": "", "wrong_login_reader": " IN ROLE tes_report"} {
		_, err := pool.Exec(t.Context(), "DROP ROLE IF EXISTS "+pgx.Identifier{role}.Sanitize()+"; CREATE ROLE "+role+" LOGIN"+of)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), "DROP ROLE wrong_login_service; DROP ROLE wrong_login_reader")
	})
	env := func(dsn string) []string {
		return environ("TES_DATABASE_URL="+dsn, "TES_NEIGHBOURS_URL=http://127.0.0.1:1", "TES_LOG_LEVEL=error", "TES_DATA_DIR="+t.TempDir())
	}
	serve := []string{"serve", "--http", "127.0.0.1:0"}
	says(t, exitError, env(as(fresh, "wrong_login_service")), serve, "tes: the database lacks ", ": run tes migrate up")
	says(t, exitError, env(as(dbtest.URL(pool), "wrong_login_reader")), serve, `tes: the login "wrong_login_reader" may not read the tables of tes`, "tes_app")
	says(t, exitError, env(as(dbtest.URL(pool), "wrong_login_reader")), []string{"check"}, "tes: the login may not read the tables of tes", "tes_app")
	code, stdout, stderr := tes(t, env(as(fresh, "wrong_login_service")), "migrate", "status")
	require.Equal(t, exitOK, code, stderr)
	require.NotContains(t, stdout, "applied")
}

// What the files of this repository ask for stops no command.
func TestVariablesOfOurFilesAreKnown(t *testing.T) {
	t.Parallel()
	code, _, stderr := tes(t, environ("TES_MIGRATE_PASSWORD=x", "TES_SERVICE_PASSWORD=x", "TES_READER_PASSWORD=x", "TES_TOKEN=x", "TES_TOKEN_FILE=x", "TES_URL=x"), "version")
	require.Equal(t, exitOK, code, stderr)
	says(t, exitUsage, environ("TES_PG_PORT=5432"), []string{"dev", "--ephemeral"}, "TES_PG_PORT has no effect with --ephemeral")
}
