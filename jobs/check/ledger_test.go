package check_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/check"
	"github.com/seed-3f7a0631/tes/outbox"
)

func sum(body string) string {
	s := sha256.Sum256([]byte(body))
	return hex.EncodeToString(s[:])
}

// lines are what a consumer has heard who has missed nothing.
func (b *testBundle) lines() []check.Received {
	b.t.Helper()
	rows, err := b.pool.Query(b.t.Context(), `
		SELECT e.task_id, e.seq, CASE e.type WHEN 'assigned' THEN 'task.manual.assigned' ELSE 'task.' || e.type END
		FROM task_event e
		JOIN outbox_published p ON e.id >= p.lo AND e.id < p.hi
		WHERE e.type NOT IN ('released', 'redriven')
		ORDER BY p.id, e.id`)
	require.NoError(b.t, err)
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h check.Received, err error) {
		err = row.Scan(&h.Task, &h.Seq, &h.Subject)
		h.ID = outbox.EventID(h.Task, h.Seq)
		h.SHA256 = sum(h.ID.String())
		return h, err
	})
	require.NoError(b.t, err)
	require.Greater(b.t, len(lines), 10)
	return lines
}

// ledger writes the lines down and reads them.
func (b *testBundle) ledger(lines []check.Received) *check.Ledger {
	b.t.Helper()
	var text strings.Builder
	for _, line := range lines {
		raw, err := json.Marshal(line)
		require.NoError(b.t, err)
		text.Write(append(raw, '\n'))
	}
	ledger, err := check.ReadLedger(strings.NewReader(text.String()))
	require.NoError(b.t, err)
	return ledger
}

// of is where an event of a task stands.
func of(lines []check.Received, task uuid.UUID, subject string) int {
	return slices.IndexFunc(lines, func(h check.Received) bool { return h.Task == task && h.Subject == subject })
}

func TestEachLedgerRuleCanFail(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		rules []string
		how   func(b *testBundle, lines []check.Received) []check.Received
		says  string
	}{
		"repetitions are fine": {nil, func(_ *testBundle, l []check.Received) []check.Received { return append(l, l...) }, ""},
		"a line is missing": {[]string{"ledger_whole"}, func(b *testBundle, l []check.Received) []check.Received {
			i := of(l, b.ids["done"], "task.completed")
			return slices.Delete(l, i, i+1)
		}, "task.completed"},
		"nothing was heard": {[]string{"ledger_whole"}, func(_ *testBundle, l []check.Received) []check.Received { return nil }, "task.created"},
		"another subject": {[]string{"ledger_whole"}, func(b *testBundle, l []check.Received) []check.Received {
			l[of(l, b.ids["done"], "task.started")].Subject = "task.retry"
			return l
		}, "the log says task.started"},
		"another task": {[]string{"ledger_whole"}, func(_ *testBundle, l []check.Received) []check.Received {
			l[0].Task = uuid.New()
			return l
		}, "line 1:"},
		"another order": {[]string{"ledger_order"}, func(b *testBundle, l []check.Received) []check.Received {
			i, k := of(l, b.ids["failed"], "task.created"), of(l, b.ids["failed"], "task.started")
			l[i], l[k] = l[k], l[i]
			return l
		}, "event 1 came after event 2"},
		"a duplicate with other bytes": {[]string{"ledger_repeats"}, func(_ *testBundle, l []check.Received) []check.Received {
			again := l[3]
			again.SHA256 = sum("otherwise")
			return append(l, again)
		}, "another body than in line 4"},
		"a duplicate of another subject": {[]string{"ledger_repeats"}, func(_ *testBundle, l []check.Received) []check.Received {
			again := l[3]
			again.Subject = "task.other"
			return append(l, again)
		}, "is another than in line 4"},
		"an unknown id": {[]string{"ledger_real"}, func(_ *testBundle, l []check.Received) []check.Received {
			return append(l, check.Received{ID: uuid.New(), Subject: "task.started", Task: uuid.New(), Seq: 1, SHA256: sum("")})
		}, "never happened"},
		"two ends": {[]string{"ledger_real", "ledger_ends"}, func(b *testBundle, l []check.Received) []check.Received {
			return append(l, check.Received{ID: uuid.New(), Subject: "task.failed", Task: b.ids["done"], Seq: 9, SHA256: sum("")})
		}, "2 terminal events, 0 redrives"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			report := b.run(check.Options{Ledger: b.ledger(one.how(b, b.lines()))})
			require.Equal(t, one.rules, broken(report), "%v", report.Offending())
			if one.rules != nil {
				last := report.Offending()[len(one.rules)-1]
				require.Contains(t, last.First[0].Detail, one.says)
				require.NotEmpty(t, last.First[0].Task)
			}
		})
	}
}

// What may not have been heard yet, or never will be, need not be in the ledger.
func TestLedgerNeedNotHave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lines := b.lines()
	missing := []string{"ledger_whole"}
	lost := lines[len(lines)-1]
	ledger := func() *check.Ledger { return b.ledger(lines[:len(lines)-1]) }
	require.Equal(t, missing, broken(b.run(check.Options{Ledger: ledger()})))
	require.Empty(t, broken(b.run(check.Options{Ledger: ledger(), Since: time.Now().Add(time.Hour)})), "before it began")
	require.Empty(t, broken(b.run(check.Options{Ledger: ledger(), Grace: 2 * time.Hour})), "told within the grace")

	const flush = " WHERE id = (SELECT max(id) FROM outbox_published)"
	b.exec("UPDATE outbox_published SET published_at = now()" + flush)
	require.Empty(t, broken(b.run(check.Options{Ledger: ledger()})), "told just now")
	b.exec("INSERT INTO outbox (id, lo, hi) OVERRIDING SYSTEM VALUE SELECT id, lo, hi FROM outbox_published"+flush, "DELETE FROM outbox_published"+flush)
	require.Empty(t, broken(b.run(check.Options{Ledger: ledger()})), "not told yet")

	// Forgotten by the outbox is told long ago.
	b.exec("DELETE FROM outbox", "UPDATE task_event SET at = at - interval '2 days'")
	require.Equal(t, missing, broken(b.run(check.Options{Ledger: ledger()})))
	b.exec(`INSERT INTO outbox_parked (event_id, task_id, reason)
		SELECT id, task_id, 'too large' FROM task_event WHERE task_id = '` + lost.Task.String() + `'`)
	require.Empty(t, broken(b.run(check.Options{Ledger: ledger()})), "too large for the bus")
}

// A redrive begins another run, which ends again.
func TestLedgerKnowsRedrives(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lines := b.lines()
	b.exec(`
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
		SELECT -2, task_id, now(), version + 1, attempt, 'redriven'::task_event_type, 'FAILED'::task_status, 'PENDING'::task_status, 'x' FROM task WHERE task_id = <failed>
		UNION ALL
		SELECT -1, task_id, now(), version + 2, attempt, 'failed', 'PENDING', 'FAILED', 'x' FROM task WHERE task_id = <failed>`,
		"UPDATE task SET version = version + 2, failures = 0 WHERE task_id = <failed>",
		"INSERT INTO outbox (lo, hi) VALUES (-2, 0)")
	end := lines[of(lines, b.ids["failed"], "task.failed")]
	end.Seq += 2
	end.ID = outbox.EventID(end.Task, end.Seq)
	require.Empty(t, b.run(check.Options{Ledger: b.ledger(append(lines, end))}).Offending())
}

func TestUnreadableLedger(t *testing.T) {
	t.Parallel()
	good := `{"id":"0190b5a8-0000-8000-8000-000000000001","subject":"task.created","task":"0190b5a8-0000-7000-8000-000000000001","seq":1,"sha256":"` + sum("") + `"}`
	for bad, want := range map[string]string{
		"{":        "line 2: unexpected end of JSON input",
		"nonsense": "line 2: invalid character",
		strings.Replace(good, "0190b5a8-0000-8000", "x", 1):    "line 2: ",
		strings.Replace(good, `"id"`, `"no"`, 1):               "line 2: id is missing",
		strings.Replace(good, `"task":`, `"no":`, 1):           "line 2: task is missing",
		strings.Replace(good, `"subject"`, `"no"`, 1):          "line 2: subject is missing",
		strings.Replace(good, `"seq":1`, `"seq":0`, 1):         "line 2: seq is missing, or less than 1",
		strings.Replace(good, `"sha256":"`, `"sha256":"00`, 1): "line 2: sha256 is not 64 hex digits",
		strings.Replace(good, `"sha256"`, `"body"`, 1):         "line 2: sha256 is not 64 hex digits",
		good[:len(good)-10]:                                    "line 2: unexpected end of JSON input",
		good + strings.Repeat(" ", 1<<20):                      "line 2: bufio.Scanner: token too long",
	} {
		_, err := check.ReadLedger(strings.NewReader(good + "\n" + bad + "\n" + good + "\n"))
		require.ErrorContains(t, err, want, bad[:min(len(bad), 200)])
	}
	_, err := check.ReadLedger(strings.NewReader("\n" + good + "\n\n" + good))
	require.NoError(t, err)
}
