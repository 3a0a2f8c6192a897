package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// ifMatch is the condition of a write (RFC 9110, 13.1.1). The header is optional for every
// operation.
type ifMatch struct {
	// versions lists the accepted versions; nil: every version.
	versions []int32
	// exists demands that the resource exists.
	exists bool
}

// parseIfMatch reads If-Match: an asterisk, or a list of entity tags. A weak tag, or a tag that is
// not a version, matches nothing.
func parseIfMatch(header string) (ifMatch, error) {
	switch header {
	case "":
		return ifMatch{}, nil
	case "*":
		return ifMatch{exists: true}, nil
	}

	match := ifMatch{exists: true, versions: []int32{}}
	tags := 0
	// Lists may have empty elements and any white space between them (RFC 9110, 5.6.1).
	for rest := strings.Trim(header, " \t,"); rest != ""; rest = strings.TrimLeft(rest, " \t,") {
		opaque, weak := strings.CutPrefix(rest, "W/")
		text, after, whole := tagIn(opaque)
		if !whole || after != "" && strings.IndexByte(" \t,", after[0]) < 0 {
			return ifMatch{}, badIfMatch()
		}
		// After a tag comes a comma or the end.
		if left := strings.TrimLeft(after, " \t"); left != "" && left[0] != ',' {
			return ifMatch{}, badIfMatch()
		}
		if version, ours := versionIn(text); ours && !weak {
			match.versions = append(match.versions, version)
		}
		rest = after
		tags++
	}

	if tags == 0 {
		return ifMatch{}, badIfMatch()
	}

	return match, nil
}

func badIfMatch() *Problem {
	return violation("header.If-Match", `expected entity tags as an ETag gave them, such as "3" or "3", "4", or *`)
}

// tagIn returns the content of the quoted tag at the beginning, and the text after the tag.
func tagIn(text string) (tag, after string, ok bool) {
	if text == "" || text[0] != '"' {
		return "", "", false
	}
	tag, after, ok = strings.Cut(text[1:], `"`)
	return tag, after, ok && !strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// versionIn returns the version that a tag names.
func versionIn(tag string) (version int32, ok bool) {
	n, err := strconv.ParseInt(tag, 10, 32)
	return int32(n), err == nil && n > 0 && tag[0] >= '1' && tag[0] <= '9'
}

// one returns the version by which package jobs fences the write, 0 for any. ok is false if there
// are several versions, or none that could match.
func (m ifMatch) one() (version int32, ok bool) {
	switch {
	case m.versions == nil:
		return 0, true
	case len(m.versions) == 1:
		return m.versions[0], true
	}
	return 0, false
}

// write makes a write to a task under its condition. A list of versions is reduced to the task's
// current one, which then fences the write. If the task changes in between, perhaps to another
// version of the list, write reads the version again.
func (c *core) write(ctx context.Context, id uuid.UUID, match ifMatch, reason string, do func(jobs.Actor) (db.Task, error)) (db.Task, error) {
	actor := actorOf(ctx, reason)
	if version, ok := match.one(); ok {
		actor.IfMatch = version
		return do(actor)
	}

	// Each further round means that the task has changed.
	for range len(match.versions) + 1 {
		// The version that is read here fences the write, so a change in between is noticed.
		task, err := c.tasks.Get(ctx, actor.Tenant, id)
		if err != nil {
			return db.Task{}, err
		}
		switch {
		case slices.Contains(match.versions, task.Version):
			actor.IfMatch = task.Version
		case jobs.Status(task.Status).Terminal() && slices.Contains(match.versions, task.Version-1):
			// The request may be a repetition of the write that ended the task.
			actor.IfMatch = task.Version - 1
		default:
			return db.Task{}, jobs.ErrStale
		}
		if out, err := do(actor); !errors.Is(err, jobs.ErrStale) {
			return out, err
		}
	}

	return db.Task{}, jobs.ErrStale
}

// violation is a 422 with one invalid location.
func violation(location, message string) *Problem {
	p := problem(http.StatusUnprocessableEntity, codeValidation, "the request is not valid")
	p.addViolation(location, message)
	return p
}
