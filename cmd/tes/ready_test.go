package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// readyz waits until /readyz has this status and says this.
func readyz(t *testing.T, api string, status int, says string) {
	t.Helper()
	eventually(t, patience, func() error {
		got, _, text, err := ask(t.Context(), "GET", api+"/readyz", "", nil)
		if err != nil || got != status || !strings.Contains(string(text), says) {
			return fmt.Errorf("/readyz: %d %s %w", got, text, errors.Join(err, errors.New("not yet")))
		}
		return nil
	})
}

// The address of the database leads to a standby for a while, and back. /readyz says so;
// nothing is read from the standby, so that what was answered with 201 is found; and the
// process is itself again when the address is. Field case F4.
func TestDatabaseAddressLeadsToAStandby(t *testing.T) {
	t.Parallel()
	pair := dbtest.NewPair(t, false)
	address := dbtest.NewEndpoint(t, pair.Primary.URL())
	b := setupServeOn(t, address.URL(t, pair.Primary.URL()), false)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	create := func() object {
		return must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
	}
	first := create()
	reaches(t, api, orchestrator, first["taskId"], "COMPLETED")
	readyz(t, api, http.StatusOK, `"database":"ok"`)

	address.LeadTo(t, pair.Standby.URL())
	readyz(t, api, http.StatusServiceUnavailable, "standby")
	for range 20 {
		must(t, http.StatusServiceUnavailable, "POST", api+tasksPath, orchestrator, noop("w"))
		must(t, http.StatusServiceUnavailable, "GET", api+tasksPath+"/"+fmt.Sprint(first["taskId"]), orchestrator, nil)
	}

	address.LeadTo(t, pair.Primary.URL())
	readyz(t, api, http.StatusOK, `"database":"ok"`)
	for range 20 {
		made := create()
		must(t, http.StatusOK, "GET", api+tasksPath+"/"+fmt.Sprint(made["taskId"]), orchestrator, nil)
	}
	last := create()
	reaches(t, api, orchestrator, last["taskId"], "COMPLETED")
	require.Contains(t, p.stderr.String(), "the server takes no writes")
	require.Less(t, strings.Count(p.stderr.String(), `"status":503`), 15, "each of them is in the log")
}
