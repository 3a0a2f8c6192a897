package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/jobs/check"
)

// What a request key points to is not there: one rule is broken, in a way that a
// test can make by hand.
const breakOne = "INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash) SELECT '', 'k' || n, gen_random_uuid(), now(), '' FROM generate_series(1, 25) n"

func TestCheck(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	env := environ("TES_DATABASE_URL=" + dbtest.URL(pool))

	code, stdout, stderr := tes(t, env, "check")
	require.Equal(t, exitOK, code, "%s\n%s", stdout, stderr)
	require.Empty(t, stderr)
	for _, line := range []string{
		"with a grace of 1m0s.",
		"\nok           I3   A history is a legal path with contiguous seq.\n",
		"\nok                i03_history_legal: A history is a legal path.\n",
		"\nnot checked  I5   Consumers received exactly the events of the log. (needs a consumer's ledger)\n",
		"\nnot checked  I9   ",
		"\nnot checked  I11  There is exactly one terminal event. (in part: needs a consumer's ledger)\n",
		"\nok                x_counters: ",
		"\nBroken rules: 0. Invariants that were not checked, or in part: 10 of 16.\n",
	} {
		require.Contains(t, stdout, line)
	}

	ledger := filepath.Join(t.TempDir(), "ledger")
	require.NoError(t, os.WriteFile(ledger, nil, 0o600))
	code, stdout, _ = tes(t, env, "check", "--ledger", ledger)
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, "\nok           I5   ")
	require.Contains(t, stdout, "not checked, or in part: 5 of 16.")

	_, err := pool.Exec(t.Context(), breakOne)
	require.NoError(t, err)
	code, stdout, stderr = tes(t, env, "check")
	require.Equal(t, exitError, code)
	require.Equal(t, "tes: rules that are broken: 1\n", stderr)
	require.Contains(t, stdout, "\nbroken       I12  ")
	require.Contains(t, stdout, "\nbroken            i12_request_key: ")
	require.Equal(t, 20, strings.Count(stdout, "  the key 'k"), stdout)
	require.Contains(t, stdout, "\n                   and 5 more\n")
	require.Contains(t, stdout, "\nBroken rules: 1. ")

	code, stdout, stderr = tes(t, env, "check", "--json", "--grace", "5m", "--since", "2026-01-31T09:00:00Z")
	require.Equal(t, exitError, code)
	require.Equal(t, "tes: rules that are broken: 1\n", stderr)
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &report))
	require.Equal(t, 1, report.Broken)
	require.Equal(t, "5m0s", report.Grace)
	require.Len(t, report.Invariants, 16)
	i12 := report.Invariants[11]
	require.Equal(t, check.Broken, i12.Verdict)
	require.Equal(t, 25, i12.Rules[0].Count)
	require.Len(t, i12.Rules[0].First, 20)
	require.Len(t, report.More, 5)

	// Nothing was written, and nothing is left behind in the session's name.
	require.Equal(t, 25, number(t, dbtest.URL(pool), "SELECT count(*) FROM task_request"))
}

func TestCheckCannotLook(t *testing.T) {
	t.Parallel()
	args := []string{"check"}
	says(t, exitUsage, environ(), args, "TES_DATABASE_URL is not set")
	says(t, exitError, environ("TES_DATABASE_URL=postgres://tes:"+canary+"@"+nobodysPort(t)+"/tes?connect_timeout=5"), args, "tes: reach database")
	says(t, exitUsage, environ("TES_DATABASE_URL=postgres://tes:"+canary+"@[/tes"), args, "tes: TES_DATABASE_URL: ")
	fresh := freshDatabase(t)
	says(t, exitError, environ("TES_DATABASE_URL="+fresh), args, "the database is not at this program's schema: run tes migrate up")
	require.Zero(t, number(t, fresh, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "it reads only")

	ledger := filepath.Join(t.TempDir(), "ledger")
	require.NoError(t, os.WriteFile(ledger, []byte("\n\n{\"id\": 1}\n"), 0o600))
	says(t, exitError, environ("TES_DATABASE_URL="+fresh), []string{"check", "--ledger", ledger}, "tes: read the ledger "+ledger+": line 3: ")
}
