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

// maxCandidates is how many an expression may name.
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

// verdict is what an expression may come to, beside a user's id.
type verdict struct {
	AssigneeID      string   `json:"assigneeId"`
	GroupID         string   `json:"groupId"`
	CandidateUsers  []string `json:"candidateUsers"`
	CandidateRoles  []string `json:"candidateRoles"`
	CandidateGroups []string `json:"candidateGroups"`
}

// express lets the expression decide. Null, "" and {} are nobody.
func (e executor) express(ctx context.Context, source string, job jobs.Job, people []Person, to *jobs.Assignment) (bool, error) {
	text, err := evaluate(ctx, source, job, people)
	if err != nil {
		if ended := ctx.Err(); ended != nil {
			return false, fmt.Errorf("assignment expression: %w", ended)
		}
		return false, nobody("the assignment expression: " + err.Error())
	}
	v, err := read(text)
	if err != nil {
		return false, nobody("the assignment expression: " + err.Error())
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

// evaluate answers the expression's value as JSON.
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

// read takes a verdict, or says what is wrong with it.
func read(text []byte) (v verdict, err error) {
	var id *string
	if json.Unmarshal(text, &id) == nil { // null too
		if id != nil {
			v.AssigneeID = *id
		}
		return v, v.check()
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(&v) != nil {
		return v, errors.New("comes to neither a user's id nor {assigneeId}, {groupId} or {candidateUsers, candidateRoles, candidateGroups}")
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
		return errors.New("names an assignee, a group and candidates: one of these is asked for")
	case len(candidates) > maxCandidates:
		return fmt.Errorf("names more than %d candidates", maxCandidates)
	}
	if v.AssigneeID != "" || v.GroupID != "" {
		candidates = append(candidates, v.AssigneeID+v.GroupID) // one of them
	}
	for _, id := range candidates {
		if err := jobs.GuardID(id); err != nil {
			return fmt.Errorf("names somebody: %w", err)
		}
	}
	return nil
}
