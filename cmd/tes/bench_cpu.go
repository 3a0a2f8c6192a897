package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpu is the processor time that was spent, by this process (load generator, bus
// and Go side), by all of PostgreSQL, and by the whole machine. Time a task takes
// tells more than the rate when others use the machine too.
type cpu struct{ own, postgres, machine time.Duration }

// cpu reads the clocks. PostgreSQL's stands still unless it runs on this machine,
// and, as the machine's, unless this is Linux.
func (v *benchServer) cpu(ctx context.Context) cpu {
	var c cpu
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) == nil {
		c.own = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	if v.postmaster == 0 {
		v.postmaster = v.findPostmaster(ctx)
	}
	if v.postmaster > 0 {
		c.postgres = familyTime(v.postmaster)
	}
	c.machine = machineTime()
	return c
}

// timed is one timed part.
type timed struct {
	took     time.Duration
	bus      time.Duration // of it, the relay's wait for the bus
	from, to cpu
}

// put adds the part to a round: n things a second, the microseconds of processor
// time that one of them took, and how many cores somebody else used meanwhile.
func (t timed) put(into benchRound, who string, n int) {
	into[who] = round(perSecond(n, t.took))
	into[who+"GoMicros"] = round(float64((t.to.own - t.from.own).Microseconds()) / float64(n))
	if t.bus > 0 {
		into["busShare"] = round(t.bus.Seconds() / t.took.Seconds())
	}
	if t.to.postgres > t.from.postgres {
		into[who+"PostgresMicros"] = round(float64((t.to.postgres - t.from.postgres).Microseconds()) / float64(n))
		ours := t.to.own - t.from.own + t.to.postgres - t.from.postgres
		into[who+foreignCores] = round(max(0, (t.to.machine-t.from.machine-ours).Seconds()/t.took.Seconds()))
	}
}

// foreignCores ends the name of the raw figure of somebody else's load.
const foreignCores = "ForeignCores"

// machineTime is what all processors have spent on anything but waiting.
func machineTime() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0
	}
	// cpu user nice system idle iowait irq softirq steal
	return procTime(fields, 1, 4) + procTime(fields, 6, 9)
}

// findPostmaster is the parent of our session, or -1.
func (v *benchServer) findPostmaster(ctx context.Context) int {
	var pid int
	var elsewhere bool
	err := v.admin.QueryRow(ctx, "SELECT pg_backend_pid(), inet_server_addr() IS NOT NULL").Scan(&pid, &elsewhere)
	if err != nil || elsewhere {
		return -1 // over TCP the pid may be of another machine's
	}
	fields := procStat(pid)
	if fields == nil {
		return -1
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return parent
}

// familyTime is the time of a process, of its dead and of its living children.
func familyTime(pid int) time.Duration {
	total := procTime(procStat(pid), 11, 15)
	list, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children"))
	if err != nil {
		return 0
	}
	for _, child := range strings.Fields(string(list)) {
		id, _ := strconv.Atoi(child)
		total += procTime(procStat(id), 11, 13)
	}
	return total
}

// procStat is /proc/PID/stat behind the program's name, or nil.
func procStat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.Fields(rest)
}

// procTime sums up some fields, which are in ticks of 10 ms: utime, stime and, of
// the dead children, cutime, cstime.
func procTime(fields []string, from, to int) time.Duration {
	var ticks int64
	for i := from; i < to && i < len(fields); i++ {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
