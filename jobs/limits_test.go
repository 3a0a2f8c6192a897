package jobs

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The ends of what is taken, and the times that once stopped all publishing.
var (
	soundTimes = []string{
		"2000-01-01T00:00:00Z", "2000-01-01T01:00:00+01:00", "1999-12-31T23:59:59-00:01", "2030-01-02T03:04:05.123456789+05:30", "8999-12-31T23:59:59.999999999Z",
		"9000-01-01T13:59:59+14:00",
	}
	unsoundTimes = []string{
		"9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59Z", "9000-01-01T00:00:00Z", "8999-12-31T23:59:59-00:01", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z",
		"1970-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2000-01-01T00:00:00+00:01", "0000-01-01T00:00:00+23:59",
	}
)

func read(t require.TestingT, text string) *time.Time {
	at, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	return &at
}

// TestTimesFromOutside: what is refused changes nothing, and what is taken can be told.
func TestTimesFromOutside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(manual)
	before := b.get(task.TaskID)
	reassign := func(due *time.Time) error {
		_, err := b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui"}, Reassignment{AssigneeID: "ann", DueDate: due})
		return err
	}
	create := func(due *time.Time) error {
		_, _, err := b.Create(b.ctx, request(manual, func(req *Request) { req.DueDate = due }))
		return err
	}
	rest := func(until *time.Time) error {
		_, err := b.Operators.SetMaintenance(b.ctx, Maintenance{EventID: "e", At: time.Now(), Enabled: true, Lanes: []string{LaneManual}, Until: until})
		return err
	}
	redrive := func(since *time.Time) error {
		_, err := b.DeadLetters.Redrive(b.ctx, Actor{Name: "eh"}, Redrive{Filter: &DeadLetterFilter{Since: *since}, Rate: 1})
		return err
	}
	for _, text := range unsoundTimes {
		for path, act := range map[string]func(*time.Time) error{"/dueDate": create, "/until": rest, "/filter/since": redrive, "": reassign} {
			if text == "0001-01-01T00:00:00Z" && path == "/filter/since" {
				continue // none
			}
			var invalid *Invalid
			require.ErrorAs(t, act(read(t, text)), &invalid, "%s %s", path, text)
			require.Len(t, invalid.Violations, 1)
			if path != "" {
				require.Equal(t, path, invalid.Violations[0].Path)
			}
		}
	}
	require.Equal(t, before, b.get(task.TaskID))
	require.EqualValues(t, 1, ask[int](b, "SELECT count(*) FROM task"))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM redrive_operation"))
	for _, text := range soundTimes {
		at := read(t, text)
		require.NoError(t, create(at))
		require.NoError(t, reassign(at))
		require.NoError(t, redrive(at))
		due := b.get(task.TaskID).DueAt
		require.True(t, due.Equal(at.Truncate(time.Microsecond)), "%s is kept as %s", text, due)
	}
}

// TestGuardTime: whatever the offset, what is taken can be written, with as much time
// added to it as anything of ours adds.
func TestGuardTime(t *testing.T) {
	t.Parallel()
	for _, text := range soundTimes {
		require.NoError(t, GuardTime(*read(t, text)), text)
	}
	for _, text := range unsoundTimes {
		require.Error(t, GuardTime(*read(t, text)), text)
	}
	rapid.Check(t, func(r *rapid.T) {
		zone := time.FixedZone("", rapid.IntRange(-24*3600+1, 24*3600-1).Draw(r, "offset"))
		at := time.Date(rapid.IntRange(-300, 12_000).Draw(r, "year"), time.Month(rapid.IntRange(1, 12).Draw(r, "month")), rapid.IntRange(1, 31).Draw(r, "day"),
			rapid.IntRange(0, 23).Draw(r, "hour"), 59, 59, rapid.IntRange(0, 999_999_999).Draw(r, "ns"), zone)
		if GuardTime(at) != nil {
			year := at.UTC().Year()
			require.True(r, year < 2000 || year > 8999)
			return
		}
		kept, err := timeAt("/at", &at)
		require.NoError(r, err)
		for _, later := range []time.Duration{0, longestTimeout, longestSLA, 1<<63 - 1} {
			_, err := json.Marshal(kept.Add(later))
			require.NoError(r, err)
		}
	})
}

// FuzzGuardTime reads times as a request's are read.
func FuzzGuardTime(f *testing.F) {
	for _, text := range append(soundTimes, unsoundTimes...) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var at time.Time
		raw, err := json.Marshal(text)
		if err != nil || json.Unmarshal(raw, &at) != nil || GuardTime(at) != nil {
			return
		}
		out, err := json.Marshal(at.UTC())
		require.NoError(t, err)
		require.Len(t, strings.SplitN(string(out), "-", 2)[0], len(`"2000`))
	})
}

// An executor's word is held to the same: the task fails and says why.
func TestAssignmentsFromExecutors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, to := range map[string]Assignment{
		"due date":  {AssigneeID: "ann", DueDate: read(t, unsoundTimes[0])},
		"assignee":  {AssigneeID: strings.Repeat("a", 257)},
		"group":     {GroupID: "a\nb"},
		"candidate": {CandidateUsers: []string{"ann", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.work(map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(_ context.Context, _ Job) (Result, error) {
				return Result{Assign: &to}, nil
			})}})
			task := b.becomes(b.create(manual).TaskID, Failed)
			require.Equal(t, CodeAssignment, codeOf(t, task))
			require.Contains(t, string(task.Error), name)
		})
	}
	var invalid *Invalid
	task := b.create(manual)
	for _, to := range []Reassignment{{AssigneeID: strings.Repeat("a", 257)}, {GroupID: "a\nb"}} {
		_, err := b.Worklist.Reassign(b.ctx, task.TaskID, Actor{Name: "ui"}, to)
		require.ErrorAs(t, err, &invalid)
	}
	require.Equal(t, task.Version, b.get(task.TaskID).Version)
}

func TestGuardID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "ann@example.com", "a b", strings.Repeat("é", 256)} {
		require.NoError(t, GuardID(id))
	}
	for _, id := range []string{"", strings.Repeat("a", 257), "a\nb", "\x00", "a\x7f", "\xff"} {
		require.Error(t, GuardID(id), "%q", id)
	}
}

// What is added to a time is bounded too, for whoever has no schema before him.
func TestDurationsFromOutside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, change := range map[string]func(*Request){
		"/executionConfig/timeout":   func(req *Request) { req.Config.Timeout = 1 << 62 },
		"/executionConfig/sla/hours": func(req *Request) { req.Config.SLA = &SLA{Hours: 1e9} },
	} {
		_, _, err := b.Create(b.ctx, request(manual, change))
		var invalid *Invalid
		require.ErrorAs(t, err, &invalid, path)
		require.Equal(t, path, invalid.Violations[0].Path)
	}
	_, _, err := b.Definitions.Put(b.ctx, "me", 0, Definition{ID: "d", Type: Automated, Version: "1.0.0", Timeout: -1, ExecutionConfig: ExecutionConfig{Executor: "noop"}})
	require.ErrorContains(t, err, "a timeout is")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task"))
}
