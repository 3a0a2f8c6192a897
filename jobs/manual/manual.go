// Package manual assigns tasks to people and groups, by the assignment rules of the
// definition.
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

// Person is a user to whom tasks may be assigned.
type Person struct {
	ID     string
	Name   string
	Roles  []string
	Skills []string

	open int // open tasks of the person
}

// Directory is the client of the User Service.
type Directory interface {
	// ByRole returns the available users with the role and all of the skills.
	ByRole(ctx context.Context, role string, skills []string) ([]Person, error)
	// Name returns the display name of a user.
	Name(ctx context.Context, id string) (string, error)
}

// Workload returns the number of open tasks of each user.
type Workload interface {
	OpenTasks(ctx context.Context, users []string) (map[string]int, error)
}

// New returns the executor "manual".
func New(directory Directory, workload Workload) jobs.Executor { return executor{directory, workload} }

type executor struct {
	directory Directory
	workload  Workload
}

// Execute assigns the task. The first rule that applies decides: the named assignee, the
// expression, a person with the role, the group or the candidates, the defaults. If the
// directory is unavailable the defaults apply. If no rule names an assignee, a group or a
// candidate, the task fails.
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
		return jobs.Result{}, notAssigned("the assignment rules find nobody, and there is no defaultAssignee or defaultGroup")
	}

	return jobs.Result{Assign: &to}, nil
}

// decide applies the rules that choose a person. The result is false if none of them does.
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

	// Only these two look at the number of open tasks.
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

	// By task: different tasks go to different people, and a retry goes to the same person.
	one := people[int(job.TaskID[15])%len(people)]
	to.AssigneeID, to.AssigneeName = one.ID, one.Name

	return true, nil
}

// withRole returns the people with the role and skills of the rules. The result is false if
// the directory is unavailable and has no cached answer: then the defaults apply.
func (e executor) withRole(ctx context.Context, rules *jobs.AssignmentRules) ([]Person, bool) {
	if rules.Role == "" {
		return nil, true
	}

	people, err := e.directory.ByRole(ctx, rules.Role, rules.Skills)
	return people, err == nil
}

// fallBack assigns the task to the group or to the default assignee.
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

// weighed adds the number of open tasks to people. Tasks that are assigned at the same moment
// do not count each other. If the numbers are not available, all are 0.
func (e executor) weighed(ctx context.Context, people []Person) []Person {
	ids := make([]string, len(people))
	for i, one := range people {
		ids[i] = one.ID
	}

	open, err := e.workload.OpenTasks(ctx, ids)
	if err != nil {
		return people
	}

	// A copy, because the directory caches its answer.
	out := slices.Clone(people)
	for i := range out {
		out[i].open = open[out[i].ID]
	}

	return out
}

// idlest returns the people with the fewest open tasks.
func idlest(people []Person) []Person {
	least := slices.MinFunc(people, func(a, b Person) int { return a.open - b.open }).open
	return slices.DeleteFunc(slices.Clone(people), func(one Person) bool { return one.open > least })
}

// notAssigned is a failure that no retry repairs.
func notAssigned(why string) *jobs.Failure {
	no := false
	return &jobs.Failure{Code: jobs.CodeAssignment, Message: why, Retryable: &no}
}

// name returns the display name, or the id if the name is not available.
func (e executor) name(ctx context.Context, id string) string {
	name, err := e.directory.Name(ctx, id)
	if err != nil || name == "" {
		return id
	}

	return name
}

var reference = regexp.MustCompile(`\$\{input\.([A-Za-z0-9_.]+)\}`)

// expand replaces ${input.path} by the text at that path of the input.
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
			// A missing member, or a value without members, gives an empty text.
			members, _ := value.(map[string]any)
			value = members[name]
		}

		text, _ := value.(string)
		missing = missing || text == ""
		return text
	})

	// A reference that the pattern does not match is a mistake in the definition.
	if missing || strings.Contains(out, "${") {
		return "", notAssigned("the assignee " + pattern + " names nobody: the input has no such text")
	}

	if err := jobs.GuardID(out); err != nil {
		return "", notAssigned("the assignee " + pattern + " names nobody: " + err.Error())
	}

	return out, nil
}
