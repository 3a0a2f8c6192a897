// Package manual finds the person, or the group, whose turn a task is.
package manual

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Person is a user who may be given a task.
type Person struct {
	ID   string
	Name string
}

// Directory is the User Service.
type Directory interface {
	// ByRole lists the available users with a role and all of the skills.
	ByRole(ctx context.Context, role string, skills []string) ([]Person, error)
	// Name is what a user is called.
	Name(ctx context.Context, id string) (string, error)
}

// New makes the executor "manual".
func New(directory Directory) jobs.Executor { return executor{directory} }

type executor struct{ directory Directory }

// Execute follows the definition's rules: the named assignee, else somebody with
// the role, else the candidates, else the defaults. A directory that is away
// leads to the defaults; a task for which the rules find nobody fails.
func (e executor) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	rules := job.Config.AssignmentRules
	if rules == nil {
		rules = &jobs.AssignmentRules{}
	}
	to := jobs.Assignment{
		CandidateUsers: rules.CandidateUsers, CandidateRoles: rules.CandidateRoles, CandidateGroups: rules.CandidateGroups,
		DueDate: job.DueDate,
	}
	assignee, err := expand(rules.Assignee, job.Input)
	if err != nil {
		return jobs.Result{}, err
	}
	switch {
	case assignee != "":
		to.AssigneeID, to.AssigneeName = assignee, e.name(ctx, assignee)
	case rules.Role != "":
		to.AssigneeID, to.AssigneeName = e.someone(ctx, rules, job)
	}
	if to.AssigneeID == "" && rules.DefaultAssignee != "" {
		to.AssigneeID, to.AssigneeName = rules.DefaultAssignee, e.name(ctx, rules.DefaultAssignee)
	}
	if to.AssigneeID == "" {
		to.GroupID = rules.DefaultGroup
	}
	if to.AssigneeID == "" && to.GroupID == "" && len(to.CandidateUsers)+len(to.CandidateRoles)+len(to.CandidateGroups) == 0 {
		return jobs.Result{}, nobody("the assignment rules find nobody, and there is no defaultAssignee or defaultGroup")
	}
	return jobs.Result{Assign: &to}, nil
}

func nobody(why string) *jobs.Failure {
	no := false
	return &jobs.Failure{Code: "ASSIGNMENT_ERROR", Message: why, Retryable: &no}
}

// someone picks one of the role's people, a different one for different tasks.
func (e executor) someone(ctx context.Context, rules *jobs.AssignmentRules, job jobs.Job) (id, name string) {
	people, err := e.directory.ByRole(ctx, rules.Role, rules.Skills)
	if err != nil || len(people) == 0 {
		return "", ""
	}
	one := people[int(job.TaskID[15])%len(people)]
	return one.ID, one.Name
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
	return out, nil
}
