// Package calendar computes with working time: working hours, working days, and the holidays
// of a country, in a time zone.
package calendar

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // container images may have no time zone database

	"github.com/rickar/cal/v2"
)

// Spec describes the working time. Unset fields have defaults.
type Spec struct {
	Country  string   // ISO 3166, one of Countries; default none: no holidays
	Zone     string   // IANA name; default UTC
	Start    string   // begin of the working day, such as 09:00; default 09:00
	End      string   // end of the working day; default 17:00; 24:00 is midnight
	Workdays []string // values of Days; default Monday to Friday
}

// Days are the names of the days of the week, in the order of time.Weekday.
var Days = []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}

// Countries returns the countries with known holidays. Only nationwide holidays are known.
func Countries() []string {
	all := make([]string, 0, len(holidays))
	for country := range holidays {
		all = append(all, country)
	}

	slices.Sort(all)
	return all
}

// Calendar computes with working time. Safe for concurrent use.
type Calendar struct {
	zone       *time.Location
	start, end int // minutes of the day
	week       [7]bool
	days       int // working days in a week
	holidays   *cal.Calendar
}

// New returns the calendar of a Spec, or an error that says which field is invalid.
func New(s Spec) (*Calendar, error) {
	c := &Calendar{holidays: &cal.Calendar{Cacheable: true}}

	// "Local" is a different zone on each machine, and processes must agree.
	if s.Zone == "Local" {
		return nil, errors.New("the time zone Local differs between machines: give an IANA name such as Europe/Berlin")
	}

	var err error
	if c.zone, err = time.LoadLocation(s.Zone); err != nil {
		return nil, fmt.Errorf("the time zone %q is not known: give an IANA name such as Europe/Berlin", s.Zone)
	}

	if c.start, err = minutes(s.Start, "09:00"); err != nil {
		return nil, err
	}

	if c.end, err = minutes(s.End, "17:00"); err != nil {
		return nil, err
	}

	// An hour at least: with seconds a day, Add would walk over years of days.
	if c.end-c.start < 60 {
		return nil, errors.New("a working day ends an hour or more after it starts, on the same day")
	}
	if len(s.Workdays) == 0 {
		s.Workdays = Days[1:6]
	}

	for _, name := range s.Workdays {
		day := slices.Index(Days, name)
		if day < 0 || c.week[day] {
			return nil, fmt.Errorf("workdays must be some of %s, each at most once", strings.Join(Days, ", "))
		}

		c.week[day] = true
		c.days++
	}

	if s.Country != "" {
		known, ok := holidays[s.Country]
		if !ok {
			return nil, fmt.Errorf("the holidays of %q are not known: a country is one of %s", s.Country, strings.Join(Countries(), ", "))
		}
		c.holidays.AddHoliday(known...)
	}

	return c, nil
}

func minutes(text, def string) (int, error) {
	if text == "" {
		text = def
	}
	if text == "24:00" {
		return 24 * 60, nil
	}

	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != 5 {
		return 0, fmt.Errorf("%q is not a time of day such as 09:00", text)
	}

	return t.Hour()*60 + t.Minute(), nil
}

// Week returns the working time of a week without holidays.
func (c *Calendar) Week() time.Duration {
	return time.Duration(c.days) * time.Duration(c.end-c.start) * time.Minute
}

// Add returns the moment at which work has been done since from. At the end of a working
// day the result is that end, not the beginning of the next day. If work is 0 or less, the
// result is from.
func (c *Calendar) Add(from time.Time, work time.Duration) time.Time {
	if work <= 0 {
		return from
	}

	// Ends, because every week has a working day.
	for day := c.noon(from); ; day = day.AddDate(0, 0, 1) {
		opens, closes := c.hours(day)
		if opens.Before(from) {
			opens = from
		}

		if span := closes.Sub(opens); span > 0 {
			// The remaining work ends on this day.
			if work <= span {
				return opens.Add(work).In(from.Location())
			}
			work -= span
		}
	}
}

// Between returns the working time between two moments.
func (c *Calendar) Between(from, to time.Time) (work time.Duration) {
	for day := c.noon(from); ; day = day.AddDate(0, 0, 1) {
		opens, closes := c.hours(day)
		if !opens.Before(to) {
			return work
		}
		if opens.Before(from) {
			opens = from
		}
		if closes.After(to) {
			closes = to
		}

		work += max(0, closes.Sub(opens))
	}
}

// noon returns noon of a moment's day. Every zone has noon on every day; some zones skip
// midnight on some days.
func (c *Calendar) noon(t time.Time) time.Time {
	year, month, day := t.In(c.zone).Date()
	return time.Date(year, month, day, 12, 0, 0, 0, c.zone)
}

// libraryMu guards calls of package cal: the functions of some of its holidays (Japan's
// equinoxes) write the package's own variables, which all calendars share.
var libraryMu sync.Mutex

// hours returns the begin and the end of the working time on a day, equal if the day is not
// a working day. Both are by the local clock: on a day with a clock change, the working time
// is longer or shorter. Package cal adds hours to midnight instead, which is wrong by an
// hour on such a day.
func (c *Calendar) hours(day time.Time) (opens, closes time.Time) {
	// Both the day of a holiday and its substitute are free: a holiday on a Saturday is free
	// for those who work on Saturdays, and the substitute Monday for the others.
	libraryMu.Lock()
	actual, observed, _ := c.holidays.IsHoliday(day)
	libraryMu.Unlock()

	opens = c.at(day, c.start)
	if actual || observed || !c.week[day.Weekday()] {
		return opens, opens
	}

	return opens, c.at(day, c.end)
}

// at returns the moment at which the local clock shows a minute of the day. If the clock
// skips the minute, the result is the moment of the skip; time.Date would be late by the
// skipped time.
func (c *Calendar) at(day time.Time, minute int) time.Time {
	year, month, date := day.Date()
	asked := time.Date(year, month, date, 0, minute, 0, 0, time.UTC)
	t := time.Date(year, month, date, 0, minute, 0, 0, c.zone)

	// Seconds since the epoch plus the offset are what the local clock shows.
	_, offset := t.Zone()
	from, until := t.ZoneBounds()

	switch shown := t.Unix() + int64(offset); {
	case shown > asked.Unix():
		return from
	case shown < asked.Unix():
		return until
	}

	return t
}
