package bench

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

// cpu is processor time: of this process (load generator, bus and Go code), of all PostgreSQL
// processes, and of the whole machine. When other programs use the machine too, processor time per
// task tells more than the rate.
type cpu struct{ own, postgres, machine time.Duration }

// cpu reads the clocks. The figure for PostgreSQL is 0 unless the server runs on this machine; it
// and the machine's are 0 on systems other than Linux.
func (v *server) cpu(ctx context.Context) cpu {
	var c cpu
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) == nil {
		c.own = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}

	// Looked up once: the postmaster stays the same for the whole suite.
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
	bus      time.Duration // of took, the relay's wait for the bus
	from, to cpu
}

// put adds the part to a round: n tasks, jobs or events per second, processor microseconds per
// unit, and the number of cores that other programs used meanwhile.
func (t timed) put(into roundFigures, who string, n int) {
	into[who] = rounded(perSecond(n, t.took))
	into[who+"GoMicros"] = rounded(float64((t.to.own - t.from.own).Microseconds()) / float64(n))
	if t.bus > 0 {
		into["busShare"] = rounded(t.bus.Seconds() / t.took.Seconds())
	}

	if t.to.postgres > t.from.postgres {
		into[who+"PostgresMicros"] = rounded(float64((t.to.postgres - t.from.postgres).Microseconds()) / float64(n))
		ours := t.to.own - t.from.own + t.to.postgres - t.from.postgres
		into[who+foreignCores] = rounded(max(0, (t.to.machine-t.from.machine-ours).Seconds()/t.took.Seconds()))
	}
}

// foreignCores ends the names of the raw figures of other programs' load.
const foreignCores = "ForeignCores"

// machineTime is the busy time of the processors together.
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

// findPostmaster is the process id of the postmaster, or -1 if the server may run on another
// machine.
func (v *server) findPostmaster(ctx context.Context) int {
	var pid int
	var elsewhere bool
	err := v.admin.QueryRow(ctx, "SELECT pg_backend_pid(), inet_server_addr() IS NOT NULL").Scan(&pid, &elsewhere)
	if err != nil || elsewhere {
		return -1 // over TCP the pid may be a pid of another machine
	}

	// The parent of a connection's process is the postmaster.
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

// familyTime is the processor time of a process, of its dead children and of its living children.
func familyTime(pid int) time.Duration {
	// The postmaster and its ended children: connections that were closed.
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

// procStat is the content of /proc/PID/stat behind the program's name, or nil.
func procStat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}

	// The name of a program may contain spaces, so the fields are counted from its closing bracket.
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.Fields(rest)
}

// procTime adds up fields of procStat in ticks of 10 ms: utime, stime and, for the dead children,
// cutime, cstime.
func procTime(fields []string, from, to int) time.Duration {
	var ticks int64
	for i := from; i < to && i < len(fields); i++ {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
