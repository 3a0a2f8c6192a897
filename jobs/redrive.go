package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Why a task is not redriven.
const (
	RejectedNotFound      = "NOT_FOUND"
	RejectedNotDeadLetter = "NOT_DEAD_LETTER"
	RejectedInput         = "VALIDATION_ERROR"
)

// The bounds of one redrive. A patch is tried on every input before it is begun.
const (
	MostRedriven = 10_000
	MostPatched  = 1000
)

// Redrive asks for dead letters to be put back to work: by filter or by id.
type Redrive struct {
	Filter  *DeadLetterFilter
	TaskIDs []uuid.UUID
	DryRun  bool
	// InputPatch (RFC 6902) changes the input of each; nil for none.
	InputPatch json.RawMessage
	// Rate is how many tasks a second.
	Rate int32
	// Canary holds the rest back until the first few have ended; nil for none.
	Canary *Canary
}

// Canary redrives Count tasks first. If more than MaxFailureRatio of them fail, the rest is not
// redriven.
type Canary struct {
	Count           int32
	MaxFailureRatio float64
}

// Rejected is a rejected task with the reason.
type Rejected struct {
	TaskID uuid.UUID
	Code   string
}

// Matched is the selection of a redrive.
type Matched struct {
	OperationID uuid.UUID // the nil UUID for a dry run
	Tasks       int       // that are redriven, or would be
	Complete    bool      // false: more match than one redrive takes
	Rejected    []Rejected
}

// Redrive stores an operation and returns; the processes execute the operation step by step.
func (d *DeadLetterOps) Redrive(ctx context.Context, actor Actor, r Redrive) (Matched, error) {
	patch, err := readPatch(r.InputPatch)
	if err != nil {
		return Matched{}, err
	}

	if r.Filter != nil && !r.Filter.Since.IsZero() {
		if err := GuardTime(r.Filter.Since); err != nil {
			return Matched{}, invalid("/filter/since", "%v", err)
		}
	}

	ids, out, err := d.matched(ctx, actor.Tenant, r, patch)
	if err != nil {
		return Matched{}, err
	}

	out.Tasks = len(ids)
	if r.DryRun {
		return out, nil
	}

	if out.OperationID, err = uuid.NewV7(); err != nil {
		return Matched{}, fmt.Errorf("make an operation id: %w", err)
	}

	return out, d.note(ctx, actor, r, out, ids)
}

// matched returns the tasks of a redrive; out has the rejected tasks.
func (d *DeadLetterOps) matched(ctx context.Context, tenant string, r Redrive, patch jsonpatch.Patch) (ids []uuid.UUID, out Matched, err error) {
	out.Complete = true
	if r.Filter != nil {
		most := int32(MostRedriven)
		if patch != nil {
			most = MostPatched
		}

		rows, next, err := DeadLetters(ctx, d.t.q, tenant, *r.Filter, DeadLetterCursor{}, most)
		if err != nil {
			return nil, out, err
		}

		out.Complete = next == nil

		for _, row := range rows {
			ids = append(ids, row.TaskID)
		}

		// A filter finds only dead letters: without a patch nothing can reject them.
		if patch == nil {
			return ids, out, nil
		}
	} else {
		seen := make(map[uuid.UUID]bool, len(r.TaskIDs))
		for _, id := range r.TaskIDs {
			// The second redrive of a task would be rejected as no dead letter.
			if !seen[id] {
				ids = append(ids, id)
			}
			seen[id] = true
		}
	}

	var fit []uuid.UUID
	for rest := ids; len(rest) > 0; {
		n := min(len(rest), stepOf(patch))
		known, err := d.candidates(ctx, rest[:n], patch)
		if err != nil {
			return nil, out, err
		}

		for _, id := range rest[:n] {
			code, _, err := d.fits(ctx, tenant, known[id], patch)
			switch {
			case err != nil:
				return nil, out, err
			case code != "":
				out.Rejected = append(out.Rejected, Rejected{id, code})
			default:
				fit = append(fit, id)
			}
		}

		rest = rest[n:]
	}

	return fit, out, nil
}

// note stores an operation and its tasks.
func (d *DeadLetterOps) note(ctx context.Context, actor Actor, r Redrive, out Matched, ids []uuid.UUID) error {
	id := out.OperationID
	selection := map[string]any{"taskIds": len(r.TaskIDs)}
	if r.Filter != nil {
		selection = map[string]any{"filter": r.Filter}
	}

	text, err := json.Marshal(selection)
	if err != nil {
		return fmt.Errorf("write the filter: %w", err)
	}

	p := db.RedriveCreateParams{
		OperationID: id, TenantID: actor.Tenant, Actor: actor.Name, Reason: actor.Reason, State: db.RedriveStateRUNNING,
		Rate: r.Rate, Matched: int32(len(ids)), Selection: text, InputPatch: string(r.InputPatch), //nolint:gosec // at most MostRedriven
	}
	if r.Canary != nil {
		p.State, p.CanaryCount, p.CanaryRatio = db.RedriveStateCANARY, r.Canary.Count, r.Canary.MaxFailureRatio
	}
	if len(ids) == 0 {
		p.State = db.RedriveStateDONE
	}

	add := db.RedriveAddParams{OperationID: id, Ns: make([]int32, len(ids)), TaskIds: ids}
	for i := range ids {
		add.Ns[i] = int32(i) + 1 //nolint:gosec // at most MostRedriven
	}

	// Operation, tasks and the answer to the call are one commit: no step meets a part of them.
	err = pgx.BeginFunc(ctx, d.t.pool, func(tx pgx.Tx) error {
		return actor.Call.within(ctx, tx, func(q *db.Queries) (any, error) {
			if err := q.RedriveCreate(ctx, p); err != nil {
				return nil, err
			}
			if len(ids) == 0 {
				return out, nil
			}
			return out, q.RedriveAdd(ctx, add)
		})
	})
	if err != nil {
		return readError("redrive", err)
	}

	return nil
}

// redriveTransition returns the transition back to the queue of the task. The error of the task stays
// until the next end, to show why the task was a dead letter.
func (d *DeadLetterOps) redriveTransition(ctx context.Context, op db.RedriveOperation, row db.DeadLetterTasksRow, input json.RawMessage) (*transition, error) {
	s, err := d.t.settings(ctx, row.Type, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision), row.Config)
	if err != nil {
		return nil, err
	}

	note := outbox.RedrivenNote{OperationID: op.OperationID.String(), Reason: op.Reason}
	if input != nil {
		// For an undo: the input before the patch.
		note.Input = row.Input
	}

	return &transition{
		task: row.TaskID, expect: atJobAndVersion(row.JobID, row.Version, Failed, TimedOut),
		to: Pending, event: db.TaskEventTypeRedriven, actor: op.Actor, executor: op.Actor, payload: note, input: input,
		endJob: db.RiverJobStateCompleted, timeout: s.timeout, callerWaits: true,
		next: &nextJob{lane: laneOf(Type(row.Type)), kind: waitingKind(Type(row.Type), row.Executor, s.config.Handler)},
	}, nil
}

func (d *DeadLetterOps) candidates(ctx context.Context, ids []uuid.UUID, patch jsonpatch.Patch) (map[uuid.UUID]db.DeadLetterTasksRow, error) {
	rows, err := d.t.q.DeadLetterTasks(ctx, db.DeadLetterTasksParams{TaskIds: ids, WithInput: patch != nil})
	if err != nil {
		return nil, readError("dead letters", err)
	}

	known := make(map[uuid.UUID]db.DeadLetterTasksRow, len(rows))
	for _, row := range rows {
		known[row.TaskID] = row
	}

	return known, nil
}

// fits returns the reason to reject a task (empty: none), and the patched input; nil: the task keeps
// its own.
func (d *DeadLetterOps) fits(ctx context.Context, tenant string, row db.DeadLetterTasksRow, patch jsonpatch.Patch) (code string, input json.RawMessage, err error) {
	switch {
	case row.TaskID == uuid.Nil || row.TenantID != tenant:
		return RejectedNotFound, nil, nil
	case !row.Dead:
		return RejectedNotDeadLetter, nil, nil
	case patch == nil:
		return "", nil, nil
	}

	input, err = patched(row.Input, patch)
	if err != nil {
		return RejectedInput, nil, nil //nolint:nilerr // the code says it
	}

	// The schema of the revision under which the task was created.
	def, err := d.t.defs.at(ctx, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision))
	if err != nil {
		return "", nil, err
	}

	if def != nil {
		broken, err := def.input.Validate(ctx, input)
		if err != nil {
			return "", nil, err
		}
		if len(broken) > 0 {
			return RejectedInput, nil, nil
		}
	}

	return "", input, nil
}

// longestInput bounds a patched input, as the API bounds the input of a request.
const longestInput = 1 << 20

func readPatch(text json.RawMessage) (jsonpatch.Patch, error) {
	if len(text) == 0 {
		return nil, nil
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		return nil, invalid("/inputPatch", "not a list of RFC 6902 operations")
	}
	return patch, nil
}

func patched(input json.RawMessage, patch jsonpatch.Patch) (json.RawMessage, error) {
	// Without the limit, each copy operation of a patch could double the document.
	out, err := patch.ApplyWithOptions(input, &jsonpatch.ApplyOptions{AccumulatedCopySizeLimit: longestInput})
	switch {
	case err != nil:
		return nil, fmt.Errorf("patch the input: %w", err)
	case len(out) > longestInput:
		return nil, errors.New("the patched input is too long")
	}

	if err := jsonguard.Check(out); err != nil {
		return nil, err
	}

	var members map[string]json.RawMessage
	if err := json.Unmarshal(out, &members); err != nil || members == nil {
		return nil, errors.New("the patched input is no object")
	}

	return out, nil
}
