package jobs

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The years of a time that is taken from outside, in UTC. PostgreSQL keeps more than
// RFC 3339 can write: an offset makes the year 10000 of the last hour of 9999, after
// which neither the task nor its events could be told of. The room at the end is for
// what is added to a time, and the epoch stands for none (see unset).
const (
	firstYear = 2000
	lastYear  = 8999
)

// GuardTime refuses a time that we could not keep, add to and write.
func GuardTime(t time.Time) error {
	if year := t.UTC().Year(); year < firstYear || year > lastYear {
		return errors.New("a time is in the years " + strconv.Itoa(firstYear) + " to " + strconv.Itoa(lastYear) + ", in UTC")
	}
	return nil
}

// timeAt is a guarded time as the database keeps it; nil for none.
func timeAt(path string, t *time.Time) (*time.Time, error) {
	if t == nil {
		return nil, nil
	}
	if err := GuardTime(*t); err != nil {
		return nil, invalid(path, "%v", err)
	}
	kept := t.UTC().Truncate(time.Microsecond)
	return &kept, nil
}

// longestID is how many characters the name of a person or a group may have.
const longestID = 256

// GuardID refuses the id of a person or a group that no request could ask for.
func GuardID(id string) error {
	switch {
	case id == "":
		return errors.New("an id is not empty")
	case utf8.RuneCountInString(id) > longestID:
		return errors.New("an id has at most " + strconv.Itoa(longestID) + " characters")
	case !utf8.ValidString(id) || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("an id is UTF-8 without control characters")
	}

	return nil
}
