package jobs

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var berlin = &Calendar{Country: "DE", TimeZone: "Europe/Berlin"}

// With a calendar the hours of an SLA are business hours; a due date of the request
// goes before both.
func TestDueDateByTheCalendar(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sla := func(s *SLA) func(*Request) {
		return func(req *Request) { req.Config.SLA = s }
	}
	plain := b.open(Assignment{AssigneeID: "ann"}, sla(&SLA{Hours: 0.5}))
	// The due date is reckoned from what the process knows of the database's time.
	require.InDelta(t, 30*time.Minute, plain.DueAt.Sub(*plain.AssignedAt), float64(10*time.Second))

	task := b.open(Assignment{AssigneeID: "ann"}, sla(&SLA{Hours: 8, Calendar: berlin}))
	working, err := berlin.open()
	require.NoError(t, err)
	require.InDelta(t, 8*time.Hour, working.Between(*task.AssignedAt, *task.DueAt), float64(10*time.Second))
	require.Greater(t, task.DueAt.Sub(*task.AssignedAt), 8*time.Hour-10*time.Second)

	asked := time.Now().Add(5 * time.Minute).UTC().Truncate(time.Microsecond)
	own := b.open(Assignment{AssigneeID: "ann"}, sla(&SLA{Hours: 8, Calendar: berlin}), func(req *Request) { req.DueDate = &asked })
	require.True(t, own.DueAt.Equal(asked))
}

// The parts of the time to the due date are in order, and between its ends; of
// working time where there is some.
func TestPartsOfTheTime(t *testing.T) {
	t.Parallel()
	wall := &settings{}
	from := time.Date(2026, 3, 6, 15, 0, 0, 0, time.UTC) // a Friday, 16:00 in Berlin
	require.Equal(t, from.Add(time.Hour), wall.part(from, from.Add(2*time.Hour), 50))
	require.Equal(t, from.Add(108*time.Minute), wall.part(from, from.Add(2*time.Hour), 90))
	require.Equal(t, from.Add(-time.Hour), wall.part(from, from.Add(-time.Hour), 50), "it was over before it began")

	working, err := berlin.open()
	require.NoError(t, err)
	office := &settings{working: working}
	due := time.Date(2026, 3, 9, 15, 0, 0, 0, time.UTC) // the Monday after
	require.Equal(t, time.Date(2026, 3, 9, 11, 0, 0, 0, time.UTC), office.part(from, due, 50), "not on Sunday")
	require.Equal(t, due, office.part(from, due, 100))
	sunday := time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)
	require.Equal(t, sunday.Add(time.Hour), office.part(sunday, sunday.Add(2*time.Hour), 50), "nobody works then, but that is when it is due")

	far := time.Date(8999, 12, 31, 0, 0, 0, 0, time.UTC) // no calendar is gone through so far
	require.Equal(t, wall.part(from, far, 50), office.part(from, far, 50))

	rapid.Check(t, func(r *rapid.T) {
		s := rapid.SampledFrom([]*settings{wall, office}).Draw(r, "settings")
		from := time.Unix(rapid.Int64Range(1_700_000_000, 1_900_000_000).Draw(r, "from"), 0)
		due := from.Add(time.Duration(rapid.Int64Range(1, int64(1000*time.Hour)).Draw(r, "time")))
		last := from
		for _, percent := range steps {
			at := s.part(from, due, percent)
			require.False(r, at.Before(last.Truncate(time.Microsecond)), "%d %%", percent)
			require.False(r, at.After(due))
			last = at
		}
		require.Equal(r, due, last)
	})
}

func TestBrokenRulesOfManualTasksAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tc := range map[string]struct {
		config ExecutionConfig
		path   string
	}{
		"strategy":      {ExecutionConfig{AssignmentRules: &AssignmentRules{Role: "r", Strategy: "random"}}, "/assignmentRules/strategy"},
		"two deciders":  {ExecutionConfig{AssignmentRules: &AssignmentRules{Assignee: "ann", Expression: "'bob'"}}, "/assignmentRules/expression"},
		"channel":       {ExecutionConfig{Notifications: &Notifications{Channels: []string{"pigeon"}}}, "/notifications/channels"},
		"channel twice": {ExecutionConfig{Notifications: &Notifications{Channels: []string{"email", "email"}}}, "/notifications/channels"},
		"nobody told":   {ExecutionConfig{Escalation: &Escalation{Notify: []string{""}}}, "/escalation/notify"},
		"told a line":   {ExecutionConfig{Escalation: &Escalation{Notify: []string{"a\nb"}}}, "/escalation/notify"},
		"to a line":     {ExecutionConfig{Escalation: &Escalation{ReassignTo: &EscalationTarget{GroupID: "a\nb"}}}, "/escalation/reassignTo/groupId"},
		"a line":        {ExecutionConfig{AssignmentRules: &AssignmentRules{Assignee: "a\nb"}}, "/assignmentRules/assignee"},
		"one of many":   {ExecutionConfig{AssignmentRules: &AssignmentRules{CandidateRoles: []string{"r", ""}}}, "/assignmentRules/candidateRoles"},
		"year too long": {ExecutionConfig{SLA: &SLA{Hours: 8761}}, "/sla/hours"},
		"to nobody":     {ExecutionConfig{Escalation: &Escalation{ReassignTo: &EscalationTarget{}}}, "/escalation/reassignTo"},
		"to two":        {ExecutionConfig{Escalation: &Escalation{ReassignTo: &EscalationTarget{AssigneeID: "a", GroupID: "g"}}}, "/escalation/reassignTo"},
		"zone":          {ExecutionConfig{SLA: &SLA{Calendar: &Calendar{TimeZone: "Mars/Olympus"}}}, "/sla/calendar"},
		"country":       {ExecutionConfig{SLA: &SLA{Calendar: &Calendar{Country: "XX"}}}, "/sla/calendar"},
		"no hours":      {ExecutionConfig{SLA: &SLA{Calendar: &Calendar{BusinessHours: &BusinessHours{Start: "17:00", End: "09:00"}}}}, "/sla/calendar"},
		"too long": {ExecutionConfig{SLA: &SLA{Hours: 8000, Calendar: &Calendar{
			BusinessHours: &BusinessHours{Start: "09:00", End: "10:00"}, Workdays: []string{"MON"},
		}}}, "/sla/hours"},
	} {
		var bad *Invalid
		_, _, err := b.Definitions.Put(b.ctx, "o", 0, calculate(func(d *Definition) { d.Type, d.ExecutionConfig = Manual, tc.config }))
		require.ErrorAs(t, err, &bad, name)
		require.Equal(t, "/executionConfig"+tc.path, bad.Violations[0].Path, name)
		_, _, err = b.Create(b.ctx, request(manual, func(req *Request) {
			req.Config.ExecutionConfig = tc.config
			req.Config.Executor = "manual"
		}))
		require.ErrorAs(t, err, &bad, name)
	}
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task"))
	define(t, b, func(d *Definition) { d.Type, d.ExecutionConfig, d.RetryPolicy = Manual, ExecutionConfig{}, nil })
	_, _, err := b.Create(b.ctx, request(of("calculate"), func(req *Request) {
		req.Config = &RequestConfig{ExecutionConfig: ExecutionConfig{Escalation: &Escalation{}}}
	}))
	var bad *Invalid
	require.ErrorAs(t, err, &bad, "a request leaves it to its definition")
}
