package jobs

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The years, in UTC, of a time from a request or an executor. PostgreSQL stores years that
// RFC 3339 cannot write: with an offset, the last hour of 9999 is in the year 10000, and
// neither the task nor its events could be encoded. The years above lastYear are for additions
// to a time. The epoch is below firstYear because the epoch means "no time" (see unset).
const (
	firstYear = 2000
	lastYear  = 8999
)

// GuardTime rejects a time before firstYear or after lastYear.
func GuardTime(t time.Time) error {
	if year := t.UTC().Year(); year < firstYear || year > lastYear {
		return errors.New("a time is in the years " + strconv.Itoa(firstYear) + " to " + strconv.Itoa(lastYear) + ", in UTC")
	}
	return nil
}

// timeAt guards a time, and returns the time in the database's precision; nil for nil.
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

// GuardID rejects the id of a person or a group that no request may contain.
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
