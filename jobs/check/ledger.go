package check

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/outbox"
)

// Received is one line of a ledger: one delivery of an event, as JSON. Lines are in the order of
// receipt, including duplicates.
type Received struct {
	ID      uuid.UUID `json:"id"`      // ce-id
	Subject string    `json:"subject"` // such as task.created
	Task    uuid.UUID `json:"task"`    // ce-subject
	Seq     int32     `json:"seq"`     // ce-sequence
	SHA256  string    `json:"sha256"`  // of the body, as hex
}

// Ledger is the record of the events that a consumer received.
type Ledger struct {
	first   map[uuid.UUID]*entry
	last    map[uuid.UUID]last // by task
	lines   int
	order   Rule
	repeats Rule
}

// entry is the first delivery of an event.
type entry struct {
	line    int
	seq     int32
	task    uuid.UUID
	sum     [sha256.Size]byte
	subject string
	known   bool // the log has the event
}

type last struct {
	seq  int32
	line int
}

// maxLine is the maximum length of a line, far longer than any Received.
const maxLine = 1 << 20

// ReadLedger reads lines of Received. An error contains the number of the line.
func ReadLedger(from io.Reader) (*Ledger, error) {
	l := &Ledger{
		first: map[uuid.UUID]*entry{}, last: map[uuid.UUID]last{},
		order:   Rule{ID: "ledger_order", Sentence: "The ledger has the events of a task in the order of its history.", Verdict: OK},
		repeats: Rule{ID: "ledger_repeats", Sentence: "Repeated deliveries of an event are identical.", Verdict: OK},
	}

	lines := bufio.NewScanner(from)

	// The default limit of a Scanner is 64 KiB.
	lines.Buffer(nil, maxLine)

	for lines.Scan() {
		l.lines++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}

		var h Received
		var sum []byte
		err := json.Unmarshal(lines.Bytes(), &h)
		if err == nil {
			sum, err = h.check()
		}

		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.lines, err)
		}

		l.add(h, [sha256.Size]byte(sum))
	}

	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", l.lines+1, err)
	}

	return l, nil
}

func (h Received) check() ([]byte, error) {
	switch {
	case h.ID == uuid.Nil:
		return nil, errors.New("id is missing")
	case h.Task == uuid.Nil:
		return nil, errors.New("task is missing")
	case h.Subject == "":
		return nil, errors.New("subject is missing")
	case h.Seq < 1:
		return nil, errors.New("seq is missing, or less than 1")
	}

	sum, err := hex.DecodeString(h.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return nil, errors.New("sha256 is not 64 hex digits")
	}

	return sum, nil
}

// add adds a delivery, and checks order and repetitions.
func (l *Ledger) add(h Received, sum [sha256.Size]byte) {
	// The bus delivers at least once: a repetition is an offence only if it differs.
	if before, found := l.first[h.ID]; found {
		switch {
		case before.sum != sum:
			l.repeats.offend(h.Task.String(), "line %d: event %s has another body than in line %d", l.lines, h.ID, before.line)
		case before.task != h.Task || before.seq != h.Seq || before.subject != h.Subject:
			l.repeats.offend(h.Task.String(), "line %d: event %s is another than in line %d", l.lines, h.ID, before.line)
		}

		return
	}

	l.first[h.ID] = &entry{line: l.lines, seq: h.Seq, task: h.Task, sum: sum, subject: h.Subject}

	// First deliveries must be in the order of the history; duplicates may come at any time.
	if before, found := l.last[h.Task]; found && before.seq >= h.Seq {
		l.order.offend(h.Task.String(), "line %d: event %d came after event %d, in line %d", l.lines, h.Seq, before.seq, before.line)
		return
	}

	l.last[h.Task] = last{h.Seq, l.lines}
}

// published is an event of the log that is published to the bus.
type published struct {
	ID      int64
	Task    uuid.UUID
	Seq     int32
	Subject string
	At      time.Time
	Parked  bool // quarantined: never published
}

// young are ranges of events that consumers may not have received yet, in order.
type young []struct{ Lo, Hi int64 }

func (y young) has(id int64) bool {
	i, found := slices.BinarySearchFunc(y, id, func(r struct{ Lo, Hi int64 }, id int64) int { return cmp.Compare(r.Lo, id) })
	return found || i > 0 && id < y[i-1].Hi
}

// check compares the ledger with the log. The result has a rule for each invariant that a
// ledger can prove.
func (l *Ledger) check(ctx context.Context, tx pgx.Tx, o Options) (map[string]Rule, error) {
	whole := Rule{ID: "ledger_whole", Sentence: "Every event published before the grace is in the ledger, as in the log.", Verdict: OK}
	fact := Rule{ID: "ledger_real", Sentence: "Every event of the ledger is in the log.", Verdict: OK}
	ends := Rule{ID: "ledger_ends", Sentence: "The ledger has one terminal event for each run that has ended.", Verdict: OK}
	skip := func(why string, late bool, rules ...*Rule) {
		for _, rule := range rules {
			*rule = Rule{ID: rule.ID, Sentence: rule.Sentence, Verdict: NotChecked, Why: why, tooLong: late}
		}
	}

	// Without a ledger the five rules are in the report, as not checked.
	if l == nil {
		empty, _ := ReadLedger(bytes.NewReader(nil))
		order, repeats := empty.order, empty.repeats
		skip("needs a consumer's ledger", false, &whole, &fact, &ends, &order, &repeats)
		return map[string]Rule{"I5": whole, "I6": order, "I7": repeats, "I8": fact, "I11": ends}, nil
	}

	late, err := attempt(ctx, tx, func(tx pgx.Tx) error {
		if err := l.compare(ctx, tx, o, &whole); err != nil {
			return err
		}
		l.unknown(&fact)
		return l.ends(ctx, tx, &ends)
	})
	if err != nil {
		return nil, fmt.Errorf("check the ledger: %w", err)
	}

	// Order and repetitions need no query, and are reported in any case.
	if late {
		skip(tooLong(o), true, &whole, &fact, &ends)
	}

	return map[string]Rule{"I5": whole, "I6": l.order, "I7": l.repeats, "I8": fact, "I11": ends}, nil
}

// compare looks up each event of the log in the ledger.
func (l *Ledger) compare(ctx context.Context, tx pgx.Tx, o Options, whole *Rule) error {
	sql, args := bind(read("ledger/young.sql"), o.Grace)
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return err
	}

	untold, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Lo, Hi int64 }])
	if err != nil {
		return err
	}

	if rows, err = tx.Query(ctx, read("ledger/told.sql")); err != nil {
		return err
	}

	// A ledger may be checked more than once, against different snapshots.
	for _, heard := range l.first {
		heard.known = false
	}

	var e published
	_, err = pgx.ForEachRow(rows, []any{&e.ID, &e.Task, &e.Seq, &e.Subject, &e.At, &e.Parked}, func() error {
		id := outbox.EventID(e.Task, e.Seq)
		heard, found := l.first[id]
		switch {
		case found:
			heard.known = true
			if heard.task != e.Task || heard.seq != e.Seq || heard.subject != e.Subject {
				whole.offend(e.Task.String(), "line %d: event %s is %s, %d of task %s; the log says %s, %d",
					heard.line, id, heard.subject, heard.seq, heard.task, e.Subject, e.Seq)
			}
		case e.Parked || e.At.Before(o.Since) || young(untold).has(e.ID):
			// Not published, older than the ledger, or possibly still on the way.
		default:
			whole.offend(e.Task.String(), "event %d, %s, %s is not in the ledger", e.Seq, e.Subject, id)
		}

		return nil
	})

	return err
}

// unknown reports the events of the ledger that the log does not have, in the order of the
// ledger.
func (l *Ledger) unknown(fact *Rule) {
	var odd []uuid.UUID
	for id, heard := range l.first {
		if !heard.known {
			odd = append(odd, id)
		}
	}

	// Maps have no order; reports of the same ledger must be equal.
	slices.SortFunc(odd, func(a, b uuid.UUID) int { return cmp.Compare(l.first[a].line, l.first[b].line) })

	for _, id := range odd {
		heard := l.first[id]
		fact.offend(heard.task.String(), "line %d: event %s, %s, %d of the task, never happened", heard.line, id, heard.subject, heard.seq)
	}
}

// ends reports tasks with too many terminal events. compare reports missing events.
func (l *Ledger) ends(ctx context.Context, tx pgx.Tx, ends *Rule) error {
	rows, err := tx.Query(ctx, read("ledger/redrives.sql"))
	if err != nil {
		return err
	}

	redrives := map[uuid.UUID]int{}
	var task uuid.UUID
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&task, &n}, func() error { redrives[task] = n; return nil }); err != nil {
		return err
	}

	ended := map[uuid.UUID]int{}
	for _, heard := range l.first {
		switch heard.subject {
		case "task.completed", "task.failed", "task.canceled":
			ended[heard.task]++
		}
	}

	var often []uuid.UUID
	for task, n := range ended {
		// A redriven task ends once more.
		if n > 1+redrives[task] {
			often = append(often, task)
		}
	}

	slices.SortFunc(often, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })

	for _, task := range often {
		ends.offend(task.String(), "%d terminal events, %d redrives", ended[task], redrives[task])
	}

	return nil
}
