// Package pattern compiles regular expressions of untrusted authors. The size of a pattern is
// bounded, and the cost of a match is known before the match.
package pattern

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

const (
	// MaxSource is the maximum length of a pattern in bytes: a class such as \pL compiles
	// three bytes into hundreds of ranges.
	MaxSource = 4 << 10
	// MaxSize is the maximum number of instructions of a compiled pattern. A repetition
	// compiles its body once for each count: ^.{0,1000}$ has about 3,000 instructions.
	MaxSize = 10_000
)

// Pattern is a compiled regular expression. Safe for concurrent use.
type Pattern struct {
	re   *regexp.Regexp
	size int

	// visits[n] is the maximum number of instructions that a match of n characters visits.
	// Each character beyond the last entry adds slope.
	visits []int32
	slope  int
}

// Compile compiles a pattern in Go's syntax. A pattern longer than MaxSource or larger than
// MaxSize is rejected before memory is spent.
func Compile(source string) (*Pattern, error) {
	parsed, err := parse(source)
	if err != nil {
		return nil, err
	}

	if size := sizeOf(parsed); size > MaxSize {
		return nil, fmt.Errorf("the pattern compiles to %d instructions, the limit is %d", size, MaxSize)
	}

	// syntax.Compile panics at {n}, unless Simplify has replaced the repetition.
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}

	re, err := regexp.Compile(source)
	if err != nil {
		return nil, err
	}

	p := &Pattern{re: re, size: len(prog.Inst)}
	p.measure(prog)
	return p, nil
}

// Check reports whether source is a valid pattern, without compiling it.
func Check(source string) error {
	_, err := parse(source)
	return err
}

func parse(source string) (*syntax.Regexp, error) {
	if len(source) > MaxSource {
		return nil, fmt.Errorf("the pattern has %d bytes, the limit is %d", len(source), MaxSource)
	}
	return syntax.Parse(source, syntax.Perl)
}

// MatchString reports whether s contains a match.
func (p *Pattern) MatchString(s string) bool { return p.re.MatchString(s) }

// String returns the source.
func (p *Pattern) String() string { return p.re.String() }

// Size returns the number of instructions.
func (p *Pattern) Size() int { return p.size }

// Cost returns an upper bound for the instructions that a match of n bytes visits. One
// visit takes about 10 ns.
func (p *Pattern) Cost(n int) int {
	// Starting a match takes time too, also for an empty text.
	overhead := 8 + p.size/16
	if n < len(p.visits) {
		return overhead + int(p.visits[n])
	}

	last := len(p.visits) - 1
	return overhead + int(p.visits[last]) + (n-last)*p.slope
}

// sizeOf estimates the number of instructions, before Simplify expands repetitions.
func sizeOf(re *syntax.Regexp) int {
	size := 0
	for _, sub := range re.Sub {
		size += sizeOf(sub)
	}

	switch re.Op {
	case syntax.OpLiteral:
		size = len(re.Rune)
	case syntax.OpCapture:
		size += 2
	case syntax.OpAlternate:
		size += len(re.Sub)
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest:
		size++
	case syntax.OpRepeat:
		if re.Max < 0 {
			size = (size + 1) * max(re.Min, 1)
		} else {
			size = (size + 1) * max(re.Max, 1)
		}
	case syntax.OpConcat:
	default:
		size++
	}

	return size
}

// measure computes visits and slope. It runs the program over unknown characters, each of
// which matches every class: after n characters, the set of active instructions contains all
// instructions that a real match can reach, in each of Go's three regexp engines.
// ^[a-z]{1,255}$ has two or three active instructions at a time, (.?){900} has all of them.
func (p *Pattern) measure(prog *syntax.Prog) {
	w := walk{prog: prog, seen: make([]uint32, len(prog.Inst))}
	budget := 4096 + 16*len(prog.Inst)
	total, before := 0, -1
	for n := 0; ; n++ {
		w.begin()

		for _, from := range w.last {
			w.follow(prog.Inst[from].Out, n)
		}

		// An unanchored match may begin at every character.
		w.follow(uint32(prog.Start), n)
		total += w.visited
		p.visits = append(p.visits, int32(total))

		// Every further character costs as much as this one.
		if n > 0 && w.visited == before && w.repeats() {
			p.slope = w.visited
			return
		}

		// The measurement itself must stay cheap: assume the worst for longer texts.
		if total > budget {
			p.slope = len(prog.Inst)
			return
		}

		before = w.visited
		w.last, w.next = w.next, w.last[:0]
	}
}

// walk holds the active instructions, which wait for a character.
type walk struct {
	prog       *syntax.Prog
	last, next []uint32
	seen       []uint32 // the round of the last visit of each instruction
	round      uint32
	visited    int // in this round
}

func (w *walk) begin() {
	w.round++
	w.visited = 0
	w.next = w.next[:0]
}

// follow visits an instruction and all instructions that it leads to without a character.
// Only position 0 is the beginning of the text.
func (w *walk) follow(at uint32, n int) {
	if w.seen[at] == w.round {
		return
	}

	w.seen[at] = w.round
	w.visited++
	switch inst := &w.prog.Inst[at]; inst.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		w.follow(inst.Out, n)
		w.follow(inst.Arg, n)
	case syntax.InstCapture, syntax.InstNop:
		w.follow(inst.Out, n)
	case syntax.InstEmptyWidth:
		if n == 0 || syntax.EmptyOp(inst.Arg)&syntax.EmptyBeginText == 0 {
			w.follow(inst.Out, n)
		}
	case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		w.next = append(w.next, at)
	}
}

// repeats reports whether this round has the same active instructions as the last round. The
// order of the instructions depends only on the instructions of the last round, so equal
// lists mean that all further rounds are equal.
func (w *walk) repeats() bool {
	if len(w.last) != len(w.next) {
		return false
	}

	for i := range w.last {
		if w.last[i] != w.next[i] {
			return false
		}
	}

	return true
}
