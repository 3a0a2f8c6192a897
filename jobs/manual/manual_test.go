package manual_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/manual"
)

// testBundle is a directory with two accountants in it.
type testBundle struct {
	jobs.Executor
	directory *directory
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	d := &directory{
		byRole: map[string][]manual.Person{"accountant": {{ID: "ann", Name: "Ann"}, {ID: "bob", Name: "Bob"}}},
		names:  map[string]string{"ann": "Ann Smith", "deputy": "The Deputy"},
	}
	return &testBundle{manual.New(d), d}
}

// directory stands where the User Service is called; package peer has the real one.
type directory struct {
	byRole map[string][]manual.Person
	names  map[string]string
	away   error
	asked  []string
}

func (d *directory) ByRole(_ context.Context, role string, skills []string) ([]manual.Person, error) {
	d.asked = append([]string{role}, skills...)
	return d.byRole[role], d.away
}

func (d *directory) Name(_ context.Context, id string) (string, error) { return d.names[id], d.away }

func job(rules *jobs.AssignmentRules, input string) jobs.Job {
	return jobs.Job{TaskID: uuid.New(), Input: json.RawMessage(input), Config: jobs.ExecutionConfig{AssignmentRules: rules}}
}

func TestRulesFindWhoseTurnItIs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		rules jobs.AssignmentRules
		input string
		away  bool
		want  jobs.Assignment
	}{
		"a named person":          {rules: jobs.AssignmentRules{Assignee: "ann", Role: "accountant"}, want: jobs.Assignment{AssigneeID: "ann", AssigneeName: "Ann Smith"}},
		"a person without a name": {rules: jobs.AssignmentRules{Assignee: "zoe"}, want: jobs.Assignment{AssigneeID: "zoe", AssigneeName: "zoe"}},
		"a person the input names": {
			rules: jobs.AssignmentRules{Assignee: "${input.order.owner}"}, input: `{"order": {"owner": "ann"}}`,
			want: jobs.Assignment{AssigneeID: "ann", AssigneeName: "Ann Smith"},
		},
		"part of a name": {
			rules: jobs.AssignmentRules{Assignee: "${input.country}-desk"}, input: `{"country": "at"}`,
			want: jobs.Assignment{AssigneeID: "at-desk", AssigneeName: "at-desk"},
		},
		"the default, when nobody has the role": {
			rules: jobs.AssignmentRules{Role: "pilot", DefaultAssignee: "deputy"}, want: jobs.Assignment{AssigneeID: "deputy", AssigneeName: "The Deputy"},
		},
		"the default, when the directory is away": {
			rules: jobs.AssignmentRules{Role: "accountant", DefaultAssignee: "deputy"}, away: true, want: jobs.Assignment{AssigneeID: "deputy", AssigneeName: "deputy"},
		},
		"the default group": {rules: jobs.AssignmentRules{Role: "pilot", DefaultGroup: "crew"}, want: jobs.Assignment{GroupID: "crew"}},
		"candidates": {
			rules: jobs.AssignmentRules{CandidateUsers: []string{"ann"}, CandidateRoles: []string{"r"}, CandidateGroups: []string{"g"}},
			want:  jobs.Assignment{CandidateUsers: []string{"ann"}, CandidateRoles: []string{"r"}, CandidateGroups: []string{"g"}},
		},
		"candidates beside a group": {
			rules: jobs.AssignmentRules{CandidateUsers: []string{"ann"}, DefaultGroup: "g"}, want: jobs.Assignment{GroupID: "g", CandidateUsers: []string{"ann"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			if tc.away {
				b.directory.away = errors.New("away")
			}
			got, err := b.Execute(t.Context(), job(&tc.rules, tc.input))
			require.NoError(t, err)
			require.Equal(t, jobs.Result{Assign: &tc.want}, got)
		})
	}
}

func TestTurnsAreSpreadOverTheRole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	found := map[string]bool{}
	for range 100 {
		one := job(&jobs.AssignmentRules{Role: "accountant", Skills: []string{"vat", "german"}}, `{}`)
		got, err := b.Execute(t.Context(), one)
		require.NoError(t, err)
		found[got.Assign.AssigneeID] = true
		again, err := b.Execute(t.Context(), one)
		require.NoError(t, err)
		require.Equal(t, got, again, "the same task, the same person")
	}
	require.Equal(t, map[string]bool{"ann": true, "bob": true}, found)
	require.Equal(t, []string{"accountant", "vat", "german"}, b.directory.asked)
}

func TestDueDateIsTheTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	due := time.Now()
	one := job(&jobs.AssignmentRules{Assignee: "ann"}, `{}`)
	one.DueDate = &due
	got, err := b.Execute(t.Context(), one)
	require.NoError(t, err)
	require.Equal(t, &due, got.Assign.DueDate)
}

func TestRulesThatFindNobodyFailForGood(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		rules *jobs.AssignmentRules
		input string
	}{
		"no rules":               {nil, `{}`},
		"nobody has the role":    {&jobs.AssignmentRules{Role: "pilot"}, `{}`},
		"the input names nobody": {&jobs.AssignmentRules{Assignee: "${input.owner}", DefaultGroup: "g"}, `{}`},
		"the input names no one": {&jobs.AssignmentRules{Assignee: "${input.owner}"}, `{"owner": 7}`},
		"not even a reference":   {&jobs.AssignmentRules{Assignee: "${owner}"}, `{"owner": "ann"}`},
		"a reference too deep":   {&jobs.AssignmentRules{Assignee: "${input.a.b.c}"}, `{"a": "x"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			_, err := b.Execute(t.Context(), job(tc.rules, tc.input))
			var failure *jobs.Failure
			require.ErrorAs(t, err, &failure)
			require.Equal(t, "ASSIGNMENT_ERROR", failure.Code)
			require.False(t, *failure.Retryable, "the rules would find nobody tomorrow either")
		})
	}
}
