// Package manual finds the person, or the group, whose turn a task is.
package manual

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Person is a user who may be given a task.
type Person struct {
	ID     string
	Name   string
	Roles  []string
	Skills []string

	open int // tasks that they have to do
}

// Directory is the User Service.
type Directory interface {
	// ByRole lists the available users with a role and all of the skills.
	ByRole(ctx context.Context, role string, skills []string) ([]Person, error)
	// Name is what a user is called.
	Name(ctx context.Context, id string) (string, error)
}

// Workload knows how much people have to do.
type Workload interface {
	OpenTasks(ctx context.Context, users []string) (map[string]int, error)
}

// New makes the executor "manual".
func New(directory Directory, workload Workload) jobs.Executor { return executor{directory, workload} }

type executor struct {
	directory Directory
	workload  Workload
}

// Execute follows the definition's rules: the named assignee, else whom the
// expression decides on, else somebody with the role; else the group, and whoever is a
// candidate; else the defaults. A directory that is away leads to the defaults; a task
// for which the rules find nobody fails.
func (e executor) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	rules := job.Config.AssignmentRules
	if rules == nil {
		rules = &jobs.AssignmentRules{}
	}
	to := jobs.Assignment{
		CandidateUsers: rules.CandidateUsers, CandidateRoles: rules.CandidateRoles, CandidateGroups: rules.CandidateGroups,
		DueDate: job.DueDate,
	}
	decided, err := e.decide(ctx, rules, job, &to)
	if err != nil {
		return jobs.Result{}, err
	}
	if !decided {
		e.fallBack(ctx, rules, &to)
	}
	if to.AssigneeID == "" && to.GroupID == "" && len(to.CandidateUsers)+len(to.CandidateRoles)+len(to.CandidateGroups) == 0 {
		return jobs.Result{}, nobody("the assignment rules find nobody, and there is no defaultAssignee or defaultGroup")
	}
	return jobs.Result{Assign: &to}, nil
}

// decide follows the rules that look for somebody.
func (e executor) decide(ctx context.Context, rules *jobs.AssignmentRules, job jobs.Job, to *jobs.Assignment) (bool, error) {
	if rules.Assignee != "" {
		id, err := expand(rules.Assignee, job.Input)
		if err != nil || id == "" {
			return false, err
		}
		to.AssigneeID, to.AssigneeName = id, e.name(ctx, id)
		return true, nil
	}
	people, there := e.withRole(ctx, rules)
	if !there {
		return false, nil
	}
	if rules.Expression != "" || rules.Strategy == jobs.LeastLoaded {
		people = e.weighed(ctx, people)
	}
	if rules.Expression != "" {
		return e.express(ctx, rules.Expression, job, people, to)
	}
	if len(people) == 0 {
		return false, nil
	}
	if rules.Strategy == jobs.LeastLoaded {
		people = idlest(people)
	}
	// A different one for different tasks, the same for the same.
	one := people[int(job.TaskID[15])%len(people)]
	to.AssigneeID, to.AssigneeName = one.ID, one.Name
	return true, nil
}

// withRole are those whom the rules' role and skills find. False: the directory is
// away and remembers nothing, which is what the defaults are for.
func (e executor) withRole(ctx context.Context, rules *jobs.AssignmentRules) ([]Person, bool) {
	if rules.Role == "" {
		return nil, true
	}
	people, err := e.directory.ByRole(ctx, rules.Role, rules.Skills)
	return people, err == nil
}

// fallBack is for a task that the rules have found nobody for.
func (e executor) fallBack(ctx context.Context, rules *jobs.AssignmentRules, to *jobs.Assignment) {
	switch {
	case rules.Group != "":
		to.GroupID = rules.Group
	case rules.DefaultAssignee != "":
		to.AssigneeID, to.AssigneeName = rules.DefaultAssignee, e.name(ctx, rules.DefaultAssignee)
	default:
		to.GroupID = rules.DefaultGroup
	}
}

// weighed is people with what they have to do. Tasks that are assigned in the same
// moment do not see each other. Where it cannot be known, all have nothing.
func (e executor) weighed(ctx context.Context, people []Person) []Person {
	ids := make([]string, len(people))
	for i, one := range people {
		ids[i] = one.ID
	}
	open, err := e.workload.OpenTasks(ctx, ids)
	if err != nil {
		return people
	}
	out := slices.Clone(people) // the directory remembers its answer
	for i := range out {
		out[i].open = open[out[i].ID]
	}
	return out
}

// idlest are those who have the least to do.
func idlest(people []Person) []Person {
	least := slices.MinFunc(people, func(a, b Person) int { return a.open - b.open }).open
	return slices.DeleteFunc(slices.Clone(people), func(one Person) bool { return one.open > least })
}

func nobody(why string) *jobs.Failure {
	no := false
	return &jobs.Failure{Code: jobs.CodeAssignment, Message: why, Retryable: &no}
}

// name falls back to the id: who it is matters, what they are called does not.
func (e executor) name(ctx context.Context, id string) string {
	name, err := e.directory.Name(ctx, id)
	if err != nil || name == "" {
		return id
	}
	return name
}

var reference = regexp.MustCompile(`\$\{input\.([A-Za-z0-9_.]+)\}`)

// expand puts members of the input in place of ${input.path}.
func expand(pattern string, input json.RawMessage) (string, error) {
	if !strings.Contains(pattern, "${") {
		return pattern, nil
	}
	var doc any
	if err := json.Unmarshal(input, &doc); err != nil {
		return "", fmt.Errorf("read the input: %w", err)
	}
	missing := false
	out := reference.ReplaceAllStringFunc(pattern, func(ref string) string {
		value := doc
		for name := range strings.SplitSeq(reference.FindStringSubmatch(ref)[1], ".") {
			members, _ := value.(map[string]any)
			value = members[name]
		}
		text, _ := value.(string)
		missing = missing || text == ""
		return text
	})
	if missing || strings.Contains(out, "${") {
		return "", nobody("the assignee " + pattern + " names nobody: the input has no such text")
	}
	if err := jobs.GuardID(out); err != nil {
		return "", nobody("the assignee " + pattern + " names nobody: " + err.Error())
	}
	return out, nil
}
