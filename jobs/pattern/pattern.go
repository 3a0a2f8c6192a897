// Package pattern compiles regular expressions that others write. A pattern has a
// bounded size, and says before a match what the match can cost.
package pattern

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

const (
	// MaxSource is how many bytes a pattern may have: a class such as \pL makes
	// hundreds of ranges of its three bytes.
	MaxSource = 4 << 10
	// MaxSize is how many instructions a pattern may compile to. A repetition
	// compiles its body once for each count: ^.{0,1000}$ has some 3,000.
	MaxSize = 10_000
)

// Pattern is a compiled regular expression. Safe for concurrent use.
type Pattern struct {
	re   *regexp.Regexp
	size int

	// visits[n] is how many instructions a match of n characters can visit; beyond
	// the last one each character costs slope more.
	visits []int32
	slope  int
}

// Compile compiles a pattern in Go's syntax. What is longer than MaxSource or
// larger than MaxSize is refused before memory is spent on it.
func Compile(source string) (*Pattern, error) {
	parsed, err := parse(source)
	if err != nil {
		return nil, err
	}
	if size := sizeOf(parsed); size > MaxSize {
		return nil, fmt.Errorf("the pattern compiles to %d instructions, the limit is %d", size, MaxSize)
	}
	// Without Simplify, Compile panics at the first {n}.
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

// Check reports whether source is a pattern, without compiling it.
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

// String is the source.
func (p *Pattern) String() string { return p.re.String() }

// Size is the number of the pattern's instructions.
func (p *Pattern) Size() int { return p.size }

// Cost bounds how many instructions a match against n bytes visits. One visit is
// some 10 ns.
func (p *Pattern) Cost(n int) int {
	overhead := 8 + p.size/16
	if n < len(p.visits) {
		return overhead + int(p.visits[n])
	}
	last := len(p.visits) - 1
	return overhead + int(p.visits[last]) + (n-last)*p.slope
}

// sizeOf estimates the instructions before Simplify repeats anything.
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

// measure runs the program over characters of which nothing is known, so that each
// one matches every class. The set of instructions that it is in after n of them
// holds all that a real match can be in, whichever of Go's three engines runs it.
// ^[a-z]{1,255}$ is in two or three at a time, (.?){900} in all.
func (p *Pattern) measure(prog *syntax.Prog) {
	w := walk{prog: prog, seen: make([]uint32, len(prog.Inst))}
	budget := 4096 + 16*len(prog.Inst)
	total, before := 0, -1
	for n := 0; ; n++ {
		w.begin()
		for _, from := range w.last {
			w.follow(prog.Inst[from].Out, n)
		}
		w.follow(uint32(prog.Start), n)
		total += w.visited
		p.visits = append(p.visits, int32(total))

		if n > 0 && w.visited == before && w.repeats() {
			p.slope = w.visited
			return
		}
		if total > budget {
			p.slope = len(prog.Inst)
			return
		}
		before = w.visited
		w.last, w.next = w.next, w.last[:0]
	}
}

// walk holds the instructions that wait for a character.
type walk struct {
	prog       *syntax.Prog
	last, next []uint32
	seen       []uint32 // the round in which an instruction was last visited
	round      uint32
	visited    int // in this round
}

func (w *walk) begin() {
	w.round++
	w.visited = 0
	w.next = w.next[:0]
}

// follow visits an instruction and what it leads to without a character. Only the
// first position is the beginning of the text.
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

// repeats reports whether this round waits at the same instructions as the last: the
// order in which they are found depends on nothing else.
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
