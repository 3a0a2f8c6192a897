package jobs

import (
	"slices"
	"time"

	"github.com/seed-3f7a0631/tes/jobs/calendar"
)

// The bounds of an SLA. In a calendar with few working hours, a few SLA hours take years, and each
// computation walks day by day.
const (
	mostHours  = 365 * 24
	longestSLA = 10 * mostHours * time.Hour
)

// checkManual rejects settings that no manual task could follow.
func checkManual(c ExecutionConfig) error {
	if r := c.AssignmentRules; r != nil {
		switch {
		case r.Strategy != "" && r.Strategy != Spread && r.Strategy != LeastLoaded:
			return invalid("/executionConfig/assignmentRules/strategy", "a strategy is %s or %s", Spread, LeastLoaded)
		// The named assignee decides first, so the expression would never be evaluated.
		case r.Expression != "" && r.Assignee != "":
			return invalid("/executionConfig/assignmentRules/expression", "give either an assignee or an expression")
		}
	}

	if err := checkNamed(c); err != nil {
		return err
	}

	if n := c.Notifications; n != nil {
		for i, channel := range n.Channels {
			if !slices.Contains(Channels, channel) || slices.Contains(n.Channels[:i], channel) {
				return invalid("/executionConfig/notifications/channels", "the channels are some of in-app, email, push, chat, each once")
			}
		}
	}

	if e := c.Escalation; e != nil {
		if to := e.ReassignTo; to != nil && (to.AssigneeID == "") == (to.GroupID == "") {
			return invalid("/executionConfig/escalation/reassignTo", "give either assigneeId or groupId")
		}
	}

	switch {
	case c.SLA == nil:
		return nil
	case !(c.SLA.Hours >= 0 && c.SLA.Hours <= mostHours): // NaN too
		return invalid("/executionConfig/sla/hours", "an SLA is 0 to %d hours", mostHours)
	case c.SLA.Calendar == nil:
		return nil
	}

	working, err := c.SLA.Calendar.open()
	if err != nil {
		return invalid("/executionConfig/sla/calendar", "%v", err)
	}
	// The hours of the SLA, as time on the calendar: Add must end within a bounded number of days.
	if c.SLA.work().Hours()/working.Week().Hours()*7*24 > longestSLA.Hours() {
		return invalid("/executionConfig/sla/hours", "that many business hours take more than ten years")
	}

	return nil
}

// checkNamed holds the people and groups that a configuration names against the rules of a request.
func checkNamed(c ExecutionConfig) error {
	type named struct {
		member string
		ids    []string
	}
	var all []named
	one := func(member, id string) {
		if id != "" {
			all = append(all, named{member, []string{id}})
		}
	}
	if r := c.AssignmentRules; r != nil {
		one("assignmentRules/assignee", r.Assignee)
		one("assignmentRules/role", r.Role)
		one("assignmentRules/group", r.Group)
		one("assignmentRules/defaultAssignee", r.DefaultAssignee)
		one("assignmentRules/defaultGroup", r.DefaultGroup)
		all = append(all, named{"assignmentRules/candidateUsers", r.CandidateUsers},
			named{"assignmentRules/candidateRoles", r.CandidateRoles}, named{"assignmentRules/candidateGroups", r.CandidateGroups},
			named{"assignmentRules/reassignRoles", r.ReassignRoles})
	}

	if e := c.Escalation; e != nil {
		all = append(all, named{"escalation/notify", e.Notify})
		if e.ReassignTo != nil {
			one("escalation/reassignTo/assigneeId", e.ReassignTo.AssigneeID)
			one("escalation/reassignTo/groupId", e.ReassignTo.GroupID)
		}
	}

	for _, of := range all {
		for _, id := range of.ids {
			if err := GuardID(id); err != nil {
				return invalid("/executionConfig/"+of.member, "%v", err)
			}
		}
	}

	return nil
}

// open returns the calendar; nil for none.
func (c *Calendar) open() (*calendar.Calendar, error) {
	if c == nil {
		return nil, nil
	}
	spec := calendar.Spec{Country: c.Country, Zone: c.TimeZone, Workdays: c.Workdays}
	if c.BusinessHours != nil {
		spec.Start, spec.End = c.BusinessHours.Start, c.BusinessHours.End
	}
	return calendar.New(spec)
}

func (s *SLA) work() time.Duration { return time.Duration(s.Hours * float64(time.Hour)) }

// dueFrom is the due date of a task that is assigned now without one: the hours of the SLA, else def.
func (s *settings) dueFrom(at time.Time, def time.Duration) time.Time {
	sla := s.config.SLA
	switch {
	case sla == nil || sla.Hours <= 0:
		return at.Add(def)
	case s.working != nil:
		// PostgreSQL stores microseconds.
		return s.working.Add(at, sla.work()).Truncate(time.Microsecond)
	}
	return at.Add(sla.work()).Truncate(time.Microsecond)
}

// part is the moment at which percent of the time to the due date is over: of the working time where
// the task has a calendar with any, else of all time. A due date more than ten years away counts in
// all time: a calendar is walked day by day, and a client's date may be thousands of years away.
func (s *settings) part(from, due time.Time, percent int) time.Time {
	if percent >= 100 || !from.Before(due) {
		return due
	}

	share := func(d time.Duration) time.Duration { return d / 100 * time.Duration(percent) }
	if s.working != nil && due.Sub(from) <= longestSLA {
		// No working time until the due date, as on a weekend: the share is of all time.
		if work := s.working.Between(from, due); work > 0 {
			return s.working.Add(from, share(work)).Truncate(time.Microsecond)
		}
	}

	return from.Add(share(due.Sub(from))).Truncate(time.Microsecond)
}
