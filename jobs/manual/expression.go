package manual

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/cel"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// maxCandidates is the maximum number of candidates that an expression may return.
const maxCandidates = 256

var language = cel.Names("input", "context", "people")

// CheckRules compiles the expression, if there is one.
func CheckRules(rules *jobs.AssignmentRules) error {
	if rules == nil || rules.Expression == "" {
		return nil
	}

	if _, err := language.Compile(rules.Expression); err != nil {
		return fmt.Errorf("assignmentRules.expression: %w", err)
	}

	return nil
}

// verdict is the result of an expression that returns an object.
type verdict struct {
	AssigneeID      string   `json:"assigneeId"`
	GroupID         string   `json:"groupId"`
	CandidateUsers  []string `json:"candidateUsers"`
	CandidateRoles  []string `json:"candidateRoles"`
	CandidateGroups []string `json:"candidateGroups"`
}

// express applies the expression. null, "" and {} assign the task to nobody.
func (e executor) express(ctx context.Context, source string, job jobs.Job, people []Person, to *jobs.Assignment) (bool, error) {
	text, err := evaluate(ctx, source, job, people)
	if err != nil {
		// An ended attempt is not an error of the expression: the task is tried again.
		if ended := ctx.Err(); ended != nil {
			return false, fmt.Errorf("assignment expression: %w", ended)
		}
		return false, notAssigned("the assignment expression: " + err.Error())
	}

	v, err := read(text)
	if err != nil {
		return false, notAssigned("the assignment expression: " + err.Error())
	}

	if len(v.CandidateUsers)+len(v.CandidateRoles)+len(v.CandidateGroups) > 0 {
		to.CandidateUsers, to.CandidateRoles, to.CandidateGroups = v.CandidateUsers, v.CandidateRoles, v.CandidateGroups
		return true, nil
	}

	to.GroupID = v.GroupID
	if to.AssigneeID = v.AssigneeID; to.AssigneeID != "" {
		known := slices.IndexFunc(people, func(one Person) bool { return one.ID == v.AssigneeID })
		if known >= 0 {
			to.AssigneeName = people[known].Name
		} else {
			to.AssigneeName = e.name(ctx, v.AssigneeID)
		}
	}

	return v.AssigneeID != "" || v.GroupID != "", nil
}

// evaluate returns the value of the expression as JSON.
func evaluate(ctx context.Context, source string, job jobs.Job, people []Person) ([]byte, error) {
	p, err := language.Program(source)
	if err != nil {
		return nil, err
	}

	input, err := cel.Decode(job.Input)
	if err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}

	workflow, err := cel.Decode(job.Context)
	if err != nil {
		return nil, fmt.Errorf("context: %w", err)
	}

	known := make([]any, len(people))
	for i, one := range people {
		known[i] = map[string]any{
			"id": one.ID, "name": one.Name, "roles": one.Roles, "skills": one.Skills, "openTasks": int64(one.open),
		}
	}

	v, err := p.Eval(ctx, map[string]any{"input": input, "context": workflow, "people": known})
	if err != nil {
		return nil, err
	}

	var to cel.Encoder
	if err := to.Value(v, 0); err != nil {
		return nil, err
	}

	return to.Bytes(), jsonguard.Check(to.Bytes())
}

// read parses the value of an expression: a user's id, or a verdict.
func read(text []byte) (v verdict, err error) {
	var id *string

	// null gives a nil id.
	if json.Unmarshal(text, &id) == nil {
		if id != nil {
			v.AssigneeID = *id
		}
		return v, v.check()
	}

	d := json.NewDecoder(bytes.NewReader(text))

	// A misspelled member would otherwise mean: nobody.
	d.DisallowUnknownFields()
	if d.Decode(&v) != nil {
		return v, errors.New("the result is neither a user's id nor {assigneeId}, {groupId} or {candidateUsers, candidateRoles, candidateGroups}")
	}

	return v, v.check()
}

func (v verdict) check() error {
	candidates := slices.Concat(v.CandidateUsers, v.CandidateRoles, v.CandidateGroups)
	ways := 0
	for _, set := range []bool{v.AssigneeID != "", v.GroupID != "", len(candidates) > 0} {
		if set {
			ways++
		}
	}

	switch {
	case ways > 1:
		return errors.New("the result names an assignee, a group and candidates: only one of them is allowed")
	case len(candidates) > maxCandidates:
		return fmt.Errorf("the result names more than %d candidates", maxCandidates)
	}

	if v.AssigneeID != "" || v.GroupID != "" {
		// At most one of the two is set.
		candidates = append(candidates, v.AssigneeID+v.GroupID)
	}

	for _, id := range candidates {
		if err := jobs.GuardID(id); err != nil {
			return fmt.Errorf("the result has an invalid id: %w", err)
		}
	}

	return nil
}
