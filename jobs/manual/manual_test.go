package manual_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
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
	load      load
}

// load is what people have to do; nil when it cannot be known.
type load map[string]int

func (l load) OpenTasks(_ context.Context, users []string) (map[string]int, error) {
	if l == nil {
		return nil, errors.New("the database is away")
	}
	open := map[string]int{}
	for _, user := range users {
		open[user] = l[user]
	}
	return open, nil
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	d := &directory{
		byRole: map[string][]manual.Person{"accountant": {
			{ID: "ann", Name: "Ann", Roles: []string{"accountant", "lead"}, Skills: []string{"vat"}}, {ID: "bob", Name: "Bob", Roles: []string{"accountant"}},
		}},
		names: map[string]string{"ann": "Ann Smith", "deputy": "The Deputy"},
	}
	l := load{"ann": 3, "bob": 1}
	return &testBundle{manual.New(d, l), d, l}
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
		"the group":                        {rules: jobs.AssignmentRules{Group: "crew"}, want: jobs.Assignment{GroupID: "crew"}},
		"the group, when nobody is there":  {rules: jobs.AssignmentRules{Role: "pilot", Group: "crew", DefaultAssignee: "deputy"}, want: jobs.Assignment{GroupID: "crew"}},
		"a person rather than the group":   {rules: jobs.AssignmentRules{Assignee: "zoe", Group: "crew"}, want: jobs.Assignment{AssigneeID: "zoe", AssigneeName: "zoe"}},
		"whoever has the fewest":           {rules: jobs.AssignmentRules{Role: "accountant", Strategy: jobs.LeastLoaded}, want: jobs.Assignment{AssigneeID: "bob", AssigneeName: "Bob"}},
		"nobody of nobody has the fewest":  {rules: jobs.AssignmentRules{Role: "pilot", Strategy: jobs.LeastLoaded, DefaultGroup: "g"}, want: jobs.Assignment{GroupID: "g"}},
		"the fewest, and the role is away": {rules: jobs.AssignmentRules{Role: "accountant", Strategy: jobs.LeastLoaded, DefaultGroup: "g"}, away: true, want: jobs.Assignment{GroupID: "g"}},
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
		"a name without an end":  {&jobs.AssignmentRules{Assignee: "${input.owner}"}, `{"owner": "` + strings.Repeat("a", 257) + `"}`},
		"two lines":              {&jobs.AssignmentRules{Assignee: "${input.owner}"}, `{"owner": "a\nb"}`},
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

// Among those who have equally few, turns are spread; so they are where it is not
// known who has how many.
func TestLeastLoadedSpreadsTies(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]load{"ties": {"ann": 2, "bob": 2, "cid": 7}, "unknown": nil} {
		b := setup(t)
		b.directory.byRole["accountant"] = append(b.directory.byRole["accountant"], manual.Person{ID: "cid"})
		b.Executor = manual.New(b.directory, l)
		found := map[string]bool{}
		for range 200 {
			got, err := b.Execute(t.Context(), job(&jobs.AssignmentRules{Role: "accountant", Strategy: jobs.LeastLoaded}, `{}`))
			require.NoError(t, err)
			found[got.Assign.AssigneeID] = true
		}
		want := map[string]bool{"ann": true, "bob": true}
		if l == nil {
			want["cid"] = true
		}
		require.Equal(t, want, found, name)
	}
}

func TestExpressionsDecide(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		expression string
		rules      jobs.AssignmentRules
		away       bool
		want       jobs.Assignment
	}{
		"a user's id":       {expression: `input.amount > 100 ? 'boss' : 'clerk'`, want: jobs.Assignment{AssigneeID: "boss", AssigneeName: "boss"}},
		"by the context":    {expression: `context.owner`, want: jobs.Assignment{AssigneeID: "zoe", AssigneeName: "zoe"}},
		"a name by the way": {expression: `'ann'`, want: jobs.Assignment{AssigneeID: "ann", AssigneeName: "Ann Smith"}},
		"one of the people": {expression: `people.filter(p, 'vat' in p.skills)[0].id`, rules: jobs.AssignmentRules{Role: "accountant"}, want: jobs.Assignment{AssigneeID: "ann", AssigneeName: "Ann"}},
		"by what they do":   {expression: `people.filter(p, p.openTasks < 2)[0].id`, rules: jobs.AssignmentRules{Role: "accountant"}, want: jobs.Assignment{AssigneeID: "bob", AssigneeName: "Bob"}},
		"an assignee":       {expression: `{'assigneeId': people[0].name}`, rules: jobs.AssignmentRules{Role: "accountant"}, want: jobs.Assignment{AssigneeID: "Ann", AssigneeName: "Ann"}},
		"a group":           {expression: `{'groupId': 'desk-' + input.country}`, want: jobs.Assignment{GroupID: "desk-at"}},
		"candidates": {
			expression: `{'candidateUsers': people.map(p, p.id), 'candidateRoles': ['lead']}`, rules: jobs.AssignmentRules{Role: "accountant", CandidateGroups: []string{"g"}},
			want: jobs.Assignment{CandidateUsers: []string{"ann", "bob"}, CandidateRoles: []string{"lead"}},
		},
		"nobody":              {expression: `null`, rules: jobs.AssignmentRules{DefaultGroup: "g"}, want: jobs.Assignment{GroupID: "g"}},
		"nobody in words":     {expression: `''`, rules: jobs.AssignmentRules{Group: "g"}, want: jobs.Assignment{GroupID: "g"}},
		"nobody in an object": {expression: `{}`, rules: jobs.AssignmentRules{DefaultAssignee: "zoe"}, want: jobs.Assignment{AssigneeID: "zoe", AssigneeName: "zoe"}},
		"the people are away": {
			expression: `people[0].id`, rules: jobs.AssignmentRules{Role: "accountant", DefaultGroup: "g"}, away: true, want: jobs.Assignment{GroupID: "g"},
		},
		"away, and not asked": {expression: `'boss'`, away: true, want: jobs.Assignment{AssigneeID: "boss", AssigneeName: "boss"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			if tc.away {
				b.directory.away = errors.New("away")
			}
			tc.rules.Expression = tc.expression
			require.NoError(t, manual.CheckRules(&tc.rules))
			one := job(&tc.rules, `{"amount": 101, "country": "at"}`)
			one.Context = json.RawMessage(`{"owner": "zoe"}`)
			got, err := b.Execute(t.Context(), one)
			require.NoError(t, err)
			require.Equal(t, jobs.Result{Assign: &tc.want}, got)
		})
	}
}

func TestExpressionsThatNameNobodyFailForGood(t *testing.T) {
	t.Parallel()
	for expression, why := range map[string]string{
		`input.none`:                            "no such key",
		`people[0].id`:                          "index out of bounds",
		`7`:                                     "neither a user's id",
		`['ann']`:                               "neither a user's id",
		`{'assignee': 'ann'}`:                   "neither a user's id",
		`{'candidateUsers': [1]}`:               "neither a user's id",
		`{'assigneeId': 'ann', 'groupId': 'g'}`: "only one of them is allowed",
		`{'groupId': 'g', 'candidateUsers': ['ann']}`:    "only one of them is allowed",
		`{'candidateUsers': ['']}`:                       "an id is not empty",
		`{'candidateUsers': input.many.map(i, 'u' + i)}`: "more than 256 candidates",
		`input.many.join('')`:                            "at most 256 characters",
		`'a\u0000b'`:                                     "expression: ",
		`input.many.map(a, input.many.map(b, input.many.map(c, a + b + c)))`: "costs more",
		`1 +`:  "expression: ",
		`null`: "the assignment rules find nobody",
	} {
		b := setup(t)
		many, err := json.Marshal(slices.Repeat([]string{"x"}, 257))
		require.NoError(t, err)
		_, err = b.Execute(t.Context(), job(&jobs.AssignmentRules{Expression: expression}, `{"many": `+string(many)+`}`))
		var failure *jobs.Failure
		require.ErrorAs(t, err, &failure, expression)
		require.Equal(t, "ASSIGNMENT_ERROR", failure.Code, expression)
		require.Contains(t, failure.Message, why, expression)
		require.False(t, *failure.Retryable, expression)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := setup(t).Execute(ended, job(&jobs.AssignmentRules{Expression: "'ann'"}, `{}`))
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, errors.As(err, new(*jobs.Failure)), "nobody's fault")
}

func TestCheckRules(t *testing.T) {
	t.Parallel()
	require.NoError(t, manual.CheckRules(nil))
	require.NoError(t, manual.CheckRules(&jobs.AssignmentRules{Role: "r"}))
	require.NoError(t, manual.CheckRules(&jobs.AssignmentRules{Expression: `input.zip.matches("^[0-9]{5}$") ? "ann" : ""`}))
	require.ErrorContains(t, manual.CheckRules(&jobs.AssignmentRules{Expression: "output.x"}), "undeclared reference to 'output'")
	require.ErrorContains(t, manual.CheckRules(&jobs.AssignmentRules{Expression: "people["}), "Syntax error")
}
