// Package calendar knows when people work: the hours of a day, the days of a week,
// and the holidays of a country, in a time zone.
package calendar

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the program runs in empty images too

	"github.com/rickar/cal/v2"
)

// Spec says when people work.
type Spec struct {
	Country  string   // ISO 3166, one of Countries; default none, and so no holidays
	Zone     string   // IANA; default UTC
	Start    string   // of the working day, as 09:00, which is the default
	End      string   // default 17:00; 24:00 is the end of the day
	Workdays []string // of Days; default Monday to Friday
}

// Days are the names of the days of the week, as time.Weekday counts them.
var Days = []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}

// Countries are those whose holidays are known: the ones that all of the country has.
func Countries() []string {
	all := make([]string, 0, len(holidays))
	for country := range holidays {
		all = append(all, country)
	}
	slices.Sort(all)
	return all
}

// Calendar reckons with working time. Safe for concurrent use.
type Calendar struct {
	zone       *time.Location
	start, end int // minutes of the day
	week       [7]bool
	days       int // of the week that are worked
	holidays   *cal.Calendar
}

// New checks a Spec. What is not set is the default.
func New(s Spec) (*Calendar, error) {
	c := &Calendar{holidays: &cal.Calendar{Cacheable: true}}
	if s.Zone == "Local" {
		return nil, errors.New("the time zone Local is another one on each machine")
	}
	var err error
	if c.zone, err = time.LoadLocation(s.Zone); err != nil {
		return nil, fmt.Errorf("no time zone %q is known: give an IANA name such as Europe/Berlin", s.Zone)
	}
	if c.start, err = minutes(s.Start, "09:00"); err != nil {
		return nil, err
	}
	if c.end, err = minutes(s.End, "17:00"); err != nil {
		return nil, err
	}
	if c.end-c.start < 60 {
		return nil, errors.New("a working day ends an hour or more after it starts, on the same day")
	}
	if len(s.Workdays) == 0 {
		s.Workdays = Days[1:6]
	}
	for _, name := range s.Workdays {
		day := slices.Index(Days, name)
		if day < 0 || c.week[day] {
			return nil, fmt.Errorf("the workdays are some of %s, each once", strings.Join(Days, ", "))
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
		return 0, fmt.Errorf("%q is no time of the day such as 09:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// Week is how long people work in a week without holidays.
func (c *Calendar) Week() time.Duration {
	return time.Duration(c.days) * time.Duration(c.end-c.start) * time.Minute
}

// Add is the moment at which that much has been worked since from: the end of a day
// rather than the start of the next, and from itself if it is nothing.
func (c *Calendar) Add(from time.Time, work time.Duration) time.Time {
	if work <= 0 {
		return from
	}
	for day := c.noon(from); ; day = day.AddDate(0, 0, 1) {
		opens, closes := c.hours(day)
		if opens.Before(from) {
			opens = from
		}
		if span := closes.Sub(opens); span > 0 {
			if work <= span {
				return opens.Add(work).In(from.Location())
			}
			work -= span
		}
	}
}

// Between is how much is worked from one moment to another.
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

// noon is the day of a moment, at noon: every zone has that hour every day, and
// not each has a midnight.
func (c *Calendar) noon(t time.Time) time.Time {
	year, month, day := t.In(c.zone).Date()
	return time.Date(year, month, day, 12, 0, 0, 0, c.zone)
}

// hours are when people begin and end on that day; the same moment if they do not
// work. By the clock on the wall: where that is changed during the day, it is longer
// or shorter. cal's own reckoning adds hours to midnight instead, and is late by one
// on such a day.
func (c *Calendar) hours(day time.Time) (opens, closes time.Time) {
	// A holiday on a Saturday is free on that Saturday too, for those who would work then,
	// and not only on the Monday that most people get for it.
	actual, observed, _ := c.holidays.IsHoliday(day)
	opens = c.at(day, c.start)
	if actual || observed || !c.week[day.Weekday()] {
		return opens, opens
	}
	return opens, c.at(day, c.end)
}

// at is when the clock on the wall shows a minute of that day. One that it jumps over is
// at the jump; time.Date would be late by the hour that it jumps.
func (c *Calendar) at(day time.Time, minute int) time.Time {
	year, month, date := day.Date()
	asked := time.Date(year, month, date, 0, minute, 0, 0, time.UTC)
	t := time.Date(year, month, date, 0, minute, 0, 0, c.zone)
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
