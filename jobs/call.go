package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// A caller may repeat a write under an idempotency key, and gets the first answer again. The key
// has a row in table call_answer:
//
//   - a first commit writes the row before the call acts: the call is under way;
//   - the transaction of the effect locks the row, checks that the call still holds the key, and
//     writes the answer there. Effect and answer are one commit;
//   - a rejected call deletes its row, and the key is free again;
//   - a call without an end holds its key for callTimeout. Then the next call takes the key over.
//     The first call's effect, if still under way, finds another holder and rolls back.
//
// If the effect of a write is not a single transaction (see Call.StoredAnswer), the answer is stored
// after the effect, and a repetition before then is answered from the effect.

const (
	// callTimeout is how long a call holds its key before another call may take the key over: longer
	// than a request may take. The fence does not depend on callTimeout.
	callTimeout = 15 * time.Second
	// callKept is how long an answer is kept.
	callKept = 24 * time.Hour
	// callPage is the page in which old answers are deleted.
	callPage = 1000
	// callEnd is how long the end of a call that has done nothing may take.
	callEnd = 2 * time.Second
)

// CallID is the scope of a key (tenant, caller, operation) and the key.
type CallID struct {
	Tenant, Caller, Operation, Key string
}

// CallAnswer is the HTTP answer to a call.
type CallAnswer struct {
	Status int
	Header map[string]string // ETag, Location and so on
	Body   []byte            // JSON, as it was sent
}

// Call is a write that holds its idempotency key. A Call belongs to a single request, and is not
// safe for concurrent use.
type Call struct {
	CallID
	// Answer encodes the answer to an effect, inside the effect's transaction. effect is a *db.Task
	// after a transition, or a Put, a Matched, a Discarded. Answer must not block: the goroutine of a
	// flusher may call Answer, for a whole batch.
	Answer func(effect any) (CallAnswer, error)

	holder int64       // random; the row names the call that holds the key
	stored *CallAnswer // committed with the effect; nil: no effect, or none known
	task   *db.Task    // as the transaction of a transition left it
	lost   bool        // the last transition found another holder of the key
}

// StoredAnswer returns the answer that was committed with the call's effect; nil where there was no
// effect, or where a repeated call is answered from the effect. Read it after the call has succeeded.
func (c *Call) StoredAnswer() *CallAnswer { return c.stored }

// CallUnderWay is the error of a call whose key another call is using; Wait is when to try again.
type CallUnderWay struct{ Wait time.Duration }

func (e *CallUnderWay) Error() string {
	return "a call with this idempotency key is under way"
}

// Calls stores the answers to writes under an idempotency key.
type Calls struct{ t *Tasks }

// Begin makes a call the holder of its key. hash identifies the body of the call. before is the
// stored answer of an earlier call; then call is nil. The error is ErrKeyReused where the key came
// with another hash, and a *CallUnderWay where the first call has not ended.
func (k *Calls) Begin(ctx context.Context, id CallID, hash []byte) (call *Call, before *CallAnswer, err error) {
	call = &Call{CallID: id, holder: rand.Int64N(math.MaxInt64)}
	what := "call of " + id.Operation

	for {
		n, err := k.t.q.CallBegin(ctx, db.CallBeginParams{
			TenantID: id.Tenant, Caller: id.Caller, Operation: id.Operation, CallKey: id.Key,
			Turn: call.holder, Seconds: callTimeout.Seconds(), BodyHash: hash,
		})
		switch {
		// Another session has inserted the key and not committed yet.
		case isLockTimeout(err):
			return nil, nil, &CallUnderWay{time.Second}
		case err != nil:
			return nil, nil, readError(what, err)
		case n == 1:
			return call, nil, nil
		}

		// The key is taken, by an answered call or by a call under way.
		row, err := k.t.q.CallGet(ctx, db.CallGetParams{TenantID: id.Tenant, Caller: id.Caller, Operation: id.Operation, CallKey: id.Key})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue // the first call was rejected or forgotten just now
		case err != nil:
			return nil, nil, readError(what, err)
		case !bytes.Equal(row.BodyHash, hash):
			return nil, nil, ErrKeyReused
		case row.Answered:
			before := &CallAnswer{Status: int(row.Status), Body: row.Body}
			if err := json.Unmarshal(row.Headers, &before.Header); err != nil {
				return nil, nil, fmt.Errorf("read the answer to a %s: %w", what, err)
			}
			return nil, before, nil
		case row.SecondsLeft > 0:
			return nil, nil, &CallUnderWay{time.Duration(row.SecondsLeft * float64(time.Second))}
		}

		// The statement compares the holder, so that only the first of two calls takes the key over.
		n, err = k.t.q.CallTakeOver(ctx, db.CallTakeOverParams{
			TenantID: id.Tenant, Caller: id.Caller, Operation: id.Operation, CallKey: id.Key,
			OldTurn: row.Turn, Turn: call.holder, Seconds: callTimeout.Seconds(),
		})
		switch {
		case isLockTimeout(err): // the effect of the first call is being written
			return nil, nil, &CallUnderWay{time.Second}
		case err != nil:
			return nil, nil, readError(what, err)
		case n == 1:
			return call, nil, nil
		}
	}
}

// StoreAnswer stores the answer to a call whose effect did not bring the answer along.
func (k *Calls) StoreAnswer(ctx context.Context, c *Call, answer CallAnswer) error {
	err := c.storeAnswer(ctx, k.t.q, answer)
	if err != nil {
		return readError("call of "+c.Operation, err)
	}
	return nil
}

// Abandon frees the key of a call that was rejected or whose result is unknown. A committed effect
// keeps its key, because CallRelease deletes no answered row. A row that cannot be deleted now is
// taken over after callTimeout.
func (k *Calls) Abandon(ctx context.Context, c *Call) {
	// The call may have ended because ctx has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callEnd)
	defer cancel()
	err := k.t.q.CallRelease(ctx, db.CallReleaseParams{TenantID: c.Tenant, Caller: c.Caller, Operation: c.Operation, CallKey: c.Key, Turn: c.holder})
	if err != nil {
		k.t.cfg.Logger.Warn("a rejected call holds its idempotency key until the key times out", "operation", c.Operation, "error", err)
	}
}

// storeAnswer writes the answer if the call still holds its key.
func (c *Call) storeAnswer(ctx context.Context, q *db.Queries, answer CallAnswer) error {
	// Headers are a JSON object in the database, and not null.
	if answer.Header == nil {
		answer.Header = map[string]string{}
	}

	headers, err := json.Marshal(answer.Header)
	if err != nil {
		return fmt.Errorf("write the answer's headers: %w", err)
	}

	// No row: another call has taken the key over. The caller's transaction rolls the effect back.
	n, err := q.CallSettle(ctx, db.CallSettleParams{
		TenantID: c.Tenant, Caller: c.Caller, Operation: c.Operation, CallKey: c.Key, Turn: c.holder,
		Status: int32(answer.Status), Headers: headers, Body: answer.Body, //nolint:gosec // an HTTP status
	})
	switch {
	case err != nil:
		return err
	case n == 0:
		return &CallUnderWay{time.Second}
	}

	c.stored = &answer
	return nil
}

// within runs do in tx and stores the answer to do's effect, if the call still holds its key. made
// is the effect; a nil effect has no answer. A nil call has no key and stores no answer.
func (c *Call) within(ctx context.Context, tx pgx.Tx, do func(q *db.Queries) (made any, err error)) error {
	q := db.New(tx)
	if c != nil {
		c.stored = nil // of a try that was rolled back
		// The key's row is locked before the rows of do, as in execTransitions: lock orders agree.
		held, err := q.CallHold(ctx, holdParams([]*Call{c}))
		switch {
		case isLockTimeout(err) || err == nil && len(held) == 0:
			return &CallUnderWay{time.Second}
		case err != nil:
			return err
		}
	}

	made, err := do(q)
	if err != nil || c == nil || made == nil {
		return err
	}

	answer, err := c.Answer(made)
	if err != nil {
		return fmt.Errorf("answer a call of %s: %w", c.Operation, err)
	}

	return c.storeAnswer(ctx, q, answer)
}

func holdParams(calls []*Call) (p db.CallHoldParams) {
	for _, c := range calls {
		p.TenantIds, p.Callers = append(p.TenantIds, c.Tenant), append(p.Callers, c.Caller)
		p.Operations, p.CallKeys, p.Turns = append(p.Operations, c.Operation), append(p.CallKeys, c.Key), append(p.Turns, c.holder)
	}
	return p
}

// callsOf returns the calls of a batch's transitions.
func callsOf(round []*transition) (calls []*Call) {
	for _, m := range round {
		if m.call != nil {
			calls = append(calls, m.call)
		}
	}
	return calls
}

// holdCalls locks the keys of a batch's calls. A transition whose call no longer holds its key is
// not applied.
func holdCalls(ctx context.Context, q *db.Queries, round []*transition, calls []*Call, wantJobs []int64) error {
	if len(calls) == 0 {
		return nil
	}

	held, err := q.CallHold(ctx, holdParams(calls))
	if err != nil {
		return fmt.Errorf("hold calls: %w", err)
	}

	kept := make(map[int64]bool, len(held))
	for _, turn := range held {
		kept[turn] = true
	}

	for i, m := range round {
		if m.call == nil {
			continue
		}
		m.call.stored, m.call.task = nil, nil // of a try that was rolled back
		// noJob matches no task: TaskMove rejects this transition, and writes the rest of the batch.
		if m.call.lost = !kept[m.call.holder]; m.call.lost {
			wantJobs[i] = noJob
		}
	}

	return nil
}

// storeAnswers stores the answers to the transitions of a batch that were applied.
func storeAnswers(ctx context.Context, q *db.Queries, round []*transition, calls []*Call, rows []db.TaskMoveRow) error {
	if len(calls) == 0 {
		return nil
	}

	ok := make(map[uuid.UUID]bool, len(rows))
	for _, row := range rows {
		ok[row.TaskID] = row.Ok
	}

	var ids []uuid.UUID
	for _, m := range round {
		if m.call != nil && ok[m.task] {
			ids = append(ids, m.task)
		}
	}

	if len(ids) == 0 {
		return nil
	}

	// Read in the same transaction, so that the answer shows the task as this transition left the
	// task, before any later transition.
	tasks, err := q.TaskGetMany(ctx, ids)
	if err != nil {
		return fmt.Errorf("read the tasks of calls: %w", err)
	}

	after := make(map[uuid.UUID]*db.Task, len(tasks))
	for i := range tasks {
		after[tasks[i].TaskID] = &tasks[i]
	}

	for _, m := range round {
		task := after[m.task]
		if m.call == nil || task == nil {
			continue
		}

		answer, err := m.call.Answer(task)
		if err != nil {
			return fmt.Errorf("answer a call of %s: %w", m.call.Operation, err)
		}

		if err := m.call.storeAnswer(ctx, q, answer); err != nil {
			return fmt.Errorf("store the answer to a call of %s: %w", m.call.Operation, err)
		}

		m.call.task = task
	}

	return nil
}

// forget deletes, in pages, the answers older than callKept.
func (k *Calls) forget(ctx context.Context) error {
	for {
		// Each page is a statement of its own, so that locks are held briefly.
		n, err := k.t.q.CallForget(ctx, db.CallForgetParams{KeptSeconds: callKept.Seconds(), Page: callPage})
		if err != nil {
			return fmt.Errorf("forget answers to calls: %w", err)
		}
		if n < callPage {
			return nil
		}
	}
}
