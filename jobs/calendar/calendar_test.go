package calendar

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t require.TestingT, s Spec) *Calendar {
	c, err := New(s)
	require.NoError(t, err)
	return c
}

func TestAdd(t *testing.T) {
	t.Parallel()
	berlin := Spec{Country: "DE", Zone: "Europe/Berlin"}
	night := Spec{Zone: "Europe/Berlin", Start: "00:00", End: "08:00", Workdays: Days}
	for name, tc := range map[string]struct {
		spec Spec
		from string
		work time.Duration
		want string
	}{
		"within a day":               {Spec{}, "2026-03-02T10:00:00Z", 2 * time.Hour, "2026-03-02T12:00:00Z"},
		"before it begins":           {Spec{}, "2026-03-02T03:00:00Z", time.Hour, "2026-03-02T10:00:00Z"},
		"after it has ended":         {Spec{}, "2026-03-02T20:00:00Z", time.Hour, "2026-03-03T10:00:00Z"},
		"to its very end":            {Spec{}, "2026-03-02T09:00:00Z", 8 * time.Hour, "2026-03-02T17:00:00Z"},
		"over the night":             {Spec{}, "2026-03-02T16:00:00Z", 2 * time.Hour, "2026-03-03T10:00:00Z"},
		"over a weekend":             {Spec{}, "2026-03-06T16:00:00Z", 8 * time.Hour, "2026-03-09T16:00:00Z"},
		"on a Sunday":                {Spec{}, "2026-03-08T12:00:00Z", time.Minute, "2026-03-09T09:01:00Z"},
		"nothing":                    {Spec{}, "2026-03-08T12:00:00Z", 0, "2026-03-08T12:00:00Z"},
		"in the zone":                {berlin, "2026-03-02T07:30:00Z", time.Hour, "2026-03-02T09:00:00Z"},
		"a day that is the next":     {Spec{Zone: "Asia/Tokyo"}, "2026-03-01T23:00:00Z", time.Hour, "2026-03-02T01:00:00Z"},
		"as the caller's zone":       {berlin, "2026-03-02T08:30:00+01:00", time.Hour, "2026-03-02T10:00:00+01:00"},
		"over Easter":                {berlin, "2026-04-02T16:30:00+02:00", time.Hour, "2026-04-07T09:30:00+02:00"},
		"a holiday elsewhere":        {Spec{Country: "US", Zone: "America/New_York"}, "2026-04-06T09:00:00-04:00", time.Hour, "2026-04-06T10:00:00-04:00"},
		"observed on the Friday":     {Spec{Country: "US", Zone: "America/New_York"}, "2026-07-03T09:00:00-04:00", time.Hour, "2026-07-06T10:00:00-04:00"},
		"to the new year":            {berlin, "2026-12-31T16:00:00+01:00", 2 * time.Hour, "2027-01-04T10:00:00+01:00"},
		"a Sunday's worth":           {Spec{Workdays: []string{"SUN"}}, "2026-03-02T00:00:00Z", 9 * time.Hour, "2026-03-15T10:00:00Z"},
		"until midnight":             {Spec{Start: "18:00", End: "24:00"}, "2026-03-02T12:00:00Z", 6 * time.Hour, "2026-03-03T00:00:00Z"},
		"the clock is put forward":   {berlin, "2026-03-27T16:00:00+01:00", 2 * time.Hour, "2026-03-30T10:00:00+02:00"},
		"within the day it is":       {night, "2026-03-29T00:00:00+01:00", 7 * time.Hour, "2026-03-29T08:00:00+02:00"},
		"an hour is missing then":    {night, "2026-03-29T00:00:00+01:00", 8 * time.Hour, "2026-03-30T01:00:00+02:00"},
		"and one is there twice":     {night, "2026-10-25T00:00:00+02:00", 9 * time.Hour, "2026-10-25T08:00:00+01:00"},
		"Boxing Day on a Saturday":   {Spec{Country: "GB", Zone: "Europe/London", Workdays: []string{"SAT"}}, "2026-12-21T09:00:00Z", 4 * time.Hour, "2027-01-02T13:00:00Z"},
		"and the Monday for it":      {Spec{Country: "GB", Zone: "Europe/London"}, "2026-12-28T09:00:00Z", time.Hour, "2026-12-29T10:00:00Z"},
		"Independence Day itself":    {Spec{Country: "US", Zone: "America/New_York", Workdays: []string{"SAT"}}, "2026-07-04T09:00:00-04:00", time.Hour, "2026-07-11T10:00:00-04:00"},
		"a Sunday in New Zealand":    {Spec{Country: "NZ", Zone: "Pacific/Auckland", Workdays: []string{"SUN"}}, "2027-04-25T09:00:00+12:00", time.Hour, "2027-05-02T10:00:00+12:00"},
		"a Sunday in Japan":          {Spec{Country: "JP", Zone: "Asia/Tokyo", Workdays: []string{"SUN"}}, "2026-05-03T09:00:00+09:00", time.Hour, "2026-05-10T10:00:00+09:00"},
		"King's Day on a Sunday":     {Spec{Country: "NL", Zone: "Europe/Amsterdam", Workdays: []string{"SUN"}}, "2031-04-27T09:00:00+02:00", time.Hour, "2031-05-04T10:00:00+02:00"},
		"where there is no midnight": {Spec{Zone: "America/Santiago", Workdays: Days}, "2026-09-05T17:30:00-04:00", time.Hour, "2026-09-06T10:00:00-03:00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, err := time.Parse(time.RFC3339, tc.from)
			require.NoError(t, err)
			got := must(t, tc.spec).Add(from, tc.work)
			want, err := time.Parse(time.RFC3339, tc.want)
			require.NoError(t, err)
			require.True(t, want.Equal(got), "want %s, got %s", want, got)
			require.Equal(t, from.Location(), got.Location())
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spec Spec
		why  string
	}{
		"zone":          {Spec{Zone: "Europe/Atlantis"}, "is not known: give an IANA name"},
		"local":         {Spec{Zone: "Local"}, "differs between machines"},
		"path":          {Spec{Zone: "../../etc/passwd"}, "is not known: give an IANA name"},
		"country":       {Spec{Country: "XX"}, "a country is one of AT, BE"},
		"small letters": {Spec{Country: "de"}, "not known"},
		"hour":          {Spec{Start: "9:00"}, "not a time of day"},
		"minute":        {Spec{End: "17:60"}, "not a time of day"},
		"seconds":       {Spec{End: "17:00:00"}, "not a time of day"},
		"backwards":     {Spec{Start: "17:00", End: "09:00"}, "ends an hour or more after"},
		"too short":     {Spec{Start: "09:00", End: "09:59"}, "ends an hour or more after"},
		"overnight":     {Spec{Start: "22:00", End: "06:00"}, "on the same day"},
		"workday":       {Spec{Workdays: []string{"Monday"}}, "each at most once"},
		"twice":         {Spec{Workdays: []string{"MON", "MON"}}, "each at most once"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(tc.spec)
			require.ErrorContains(t, err, tc.why)
		})
	}
}

// Each country that can be named has its holidays: New Year's Day at least.
func TestCountriesHaveHolidays(t *testing.T) {
	t.Parallel()
	require.Len(t, Countries(), 19)
	for _, country := range Countries() {
		c := must(t, Spec{Country: country, Workdays: Days})
		day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		require.Zero(t, c.Between(day, day.AddDate(0, 0, 1)), country)
		year := c.Between(day, day.AddDate(1, 0, 0)) / (8 * time.Hour)
		require.InDelta(t, 365-10, int(year), 10, country)
	}
}

func specs(t *rapid.T) Spec {
	s := Spec{
		Country: rapid.SampledFrom(append(Countries(), "")).Draw(t, "country"),
		Zone: rapid.SampledFrom([]string{
			"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago", "Pacific/Apia", "Africa/Cairo",
		}).Draw(t, "zone"),
		Workdays: rapid.SliceOfNDistinct(rapid.SampledFrom(Days), 1, 7, rapid.ID).Draw(t, "workdays"),
	}
	hours := rapid.SampledFrom([][2]string{{"", ""}, {"00:00", "24:00"}, {"01:30", "02:30"}, {"08:15", "19:45"}, {"23:00", "24:00"}, {"00:00", "01:00"}}).Draw(t, "hours")
	s.Start, s.End = hours[0], hours[1]
	return s
}

// The clock jumps from two to three, and the end of the working day with it.
func TestEndThatTheClockJumpsOver(t *testing.T) {
	t.Parallel()
	c := must(t, Spec{Zone: "Europe/Berlin", Start: "01:30", End: "02:30", Workdays: Days})
	day := time.Date(2024, 3, 31, 0, 0, 0, 0, time.UTC)
	require.Equal(t, 30*time.Minute, c.Between(day, day.AddDate(0, 0, 1).Add(-3*time.Hour)))
	require.Equal(t, time.Date(2024, 3, 31, 1, 0, 0, 0, time.UTC), c.Add(day, 30*time.Minute))
}

// What was added is what lies between; more work is later; and the end of one piece
// is the start of the next. Over ten years and any zone, changes of the clock and all.
func TestAddAndBetweenAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := must(t, specs(t))
		from := time.Unix(rapid.Int64Range(1_700_000_000, 2_000_000_000).Draw(t, "from"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		a := time.Duration(rapid.Int64Range(0, int64(60*time.Hour)).Draw(t, "a"))
		b := time.Duration(rapid.Int64Range(1, int64(60*time.Hour)).Draw(t, "b"))
		at := c.Add(from, a)
		require.False(t, at.Before(from))
		require.Equal(t, a, c.Between(from, at))
		later := c.Add(from, a+b)
		require.True(t, later.After(at))
		require.True(t, later.Equal(c.Add(at, b)), "%s and %s", later, c.Add(at, b))
		require.Equal(t, b, c.Between(at, later))
		require.Zero(t, c.Between(later, at), "backwards")
		if a > 0 {
			// It is worked up to that moment, by the clock on the wall.
			before := at.Add(-1).In(c.zone)
			minute := before.Hour()*60 + before.Minute()
			require.True(t, c.week[before.Weekday()], before)
			require.True(t, c.start <= minute && minute < c.end, before)
			actual, observed, _ := c.holidays.IsHoliday(before)
			require.False(t, actual || observed, before)
		}
	})
}

func TestCalendarIsShared(t *testing.T) {
	t.Parallel()
	c := must(t, Spec{Country: "DE", Zone: "Europe/Berlin"})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			from := time.Date(2026, time.Month(i+1), 1, 0, 0, 0, 0, time.UTC)
			c.Between(from, c.Add(from, 200*time.Hour))
		})
	}
	all.Wait()
}

// Calendars of one country share the library's holidays, and some of those compute in place:
// the equinoxes of Japan. Each goroutine gets the days of its own year.
func TestCalendarsAreConcurrent(t *testing.T) {
	t.Parallel()
	equinox := map[int]int{2024: 20, 2027: 21} // of March, a working day otherwise
	var group sync.WaitGroup
	for year, day := range equinox {
		group.Go(func() {
			for range 200 {
				c, err := New(Spec{Country: "JP", Zone: "Asia/Tokyo", Workdays: Days})
				require.NoError(t, err)
				at := time.Date(year, time.March, day, 0, 0, 0, 0, c.zone)
				require.Zero(t, c.Between(at, at.AddDate(0, 0, 1)), at)
			}
		})
	}
	group.Wait()
}
