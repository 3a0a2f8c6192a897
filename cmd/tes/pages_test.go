package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// readmeWords bounds README.md: a longer one is not read.
const readmeWords = 1200

func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.LessOrEqual(t, len(strings.Fields(string(text))), readmeWords)
}

// TestPagesNameFilesThatExist checks every path in backticks of the pages that lead a reader
// through the code.
func TestPagesNameFilesThatExist(t *testing.T) {
	t.Parallel()
	path := regexp.MustCompile("`((?:cmd|api|jobs|outbox|db|sql|docs|deploy|\\.ci|\\.github)/[A-Za-z0-9_./-]+)`")
	for _, page := range []string{"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/contract.md", "docs/glossary.md", "docs/resilience.md", "docs/performance.md"} {
		text, err := os.ReadFile("../../" + page)
		require.NoError(t, err)
		for _, found := range path.FindAllSubmatch(text, -1) {
			_, err := os.Stat("../../" + string(found[1]))
			require.NoError(t, err, "%s names it", page)
		}
	}
}

// TestPagesNameTestsInTheirPackages finds the tests of every go test command in backticks in the
// packages that the command names.
func TestPagesNameTestsInTheirPackages(t *testing.T) {
	t.Parallel()
	command := regexp.MustCompile("`go test ([^`]*?)-run '?([^'` ]+)")
	for _, page := range allPages(t) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, found := range command.FindAllSubmatch(text, -1) {
			var names []string
			for dir := range strings.FieldsSeq(string(found[1])) {
				if strings.HasPrefix(dir, "./") {
					names = append(names, testsIn(t, "../../"+dir)...)
				}
			}
			for one := range strings.SplitSeq(strings.ReplaceAll(string(found[2]), `\|`, "|"), "|") {
				pattern := regexp.MustCompile(one)
				require.True(t, slices.ContainsFunc(names, pattern.MatchString), "%s: no package of %q has a test %s", page, found[0], one)
			}
		}
	}
}

// testsIn lists the tests, fuzz tests and examples of a package, or of all packages below a
// directory that ends in /...
func testsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	root, below := strings.CutSuffix(dir, "/...")
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && !below:
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, found := range declared.FindAllSubmatch(text, -1) {
			names = append(names, string(found[1]))
		}
		return err
	}))
	return names
}

// TestPagesNameLogLines finds each log line of the table in docs/operations.md in the sources. …
// in the table stands for a part that the sources put together.
func TestPagesNameLogLines(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(page), "\n## What the log says\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n## ")
	sources := allSources(t)

	lines := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "---") || strings.Contains(cells[1], "River's") || strings.HasPrefix(cells[1], " lines of ") {
			continue
		}
		for _, message := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			lines++
			for part := range strings.SplitSeq(message[1], "…") {
				require.Contains(t, sources, strings.TrimSpace(part), "docs/operations.md names a log line that no source has")
			}
		}
	}
	require.Greater(t, lines, 40)
}

// allSources is the text of every Go file that is no test.
func allSources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	require.NoError(t, filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	}))
	return all.String()
}

// TestPagesLinkToWhatExists follows every relative link, and its anchor, of every page.
func TestPagesLinkToWhatExists(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, page := range allPages(t) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, found := range link.FindAllSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(string(found[1]), "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := page
			if target != "" {
				file = filepath.Join(filepath.Dir(page), target)
			}
			_, err := os.Stat(file)
			require.NoError(t, err, "%s links to %s", page, found[1])
			if anchor != "" {
				require.Contains(t, anchors(t, file), anchor, "%s links to %s", page, found[1])
			}
		}
	}
}

// allPages lists the Markdown files of the repository.
func allPages(t *testing.T) (pages []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", ".github/*.md"} {
		found, err := filepath.Glob("../../" + pattern)
		require.NoError(t, err)
		pages = append(pages, found...)
	}
	require.Greater(t, len(pages), 40)
	return pages
}

// anchors lists the anchors of the headings of a page, as GitHub makes them.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for line := range strings.Lines(string(text)) {
		title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if ok && strings.HasPrefix(line, "#") {
			all = append(all, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-"))
		}
	}
	return all
}

// shellBlock is a block of a page that a reader types into a shell.
type shellBlock struct {
	line   int // of the page, where the script begins
	script string
	output string // what the page says that the script prints
	shown  bool   // the page says it
}

// shellBlocks extracts the blocks marked sh of a page, each with the block marked text that
// follows it at once.
func shellBlocks(t *testing.T, page string) (blocks []shellBlock) {
	t.Helper()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	var mark string // of the block that the line is in; empty outside
	after := false  // only blank lines since the last shell block
	for i, line := range strings.Split(string(text), "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && mark == "":
			if mark = fence; fence == "" {
				mark = "none"
			}
			if mark == "sh" {
				blocks = append(blocks, shellBlock{line: i + 2})
			} else if mark == "text" && after {
				blocks[len(blocks)-1].shown = true
			} else if mark == "text" {
				mark = "none"
			}
		case isFence:
			after, mark = mark == "sh", ""
		case mark == "sh":
			blocks[len(blocks)-1].script += line + "\n"
		case mark == "text":
			blocks[len(blocks)-1].output += line + "\n"
		case strings.TrimSpace(line) != "":
			after = false
		}
	}
	return blocks
}

// TestPagesRun runs the shell blocks of the README and of the tutorial in their order, in one
// shell a page, with the programs that the pages name and no others, and compares what each
// prints with what the page says.
func TestPagesRun(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	isReady(t, p, file)
	programs := onlyPrograms(t, "curl", "jq", "sh", "grep", "sed", "sleep", "tr")

	for _, page := range []string{"../../README.md", "../../docs/tutorial.md"} {
		blocks := shellBlocks(t, page)
		require.NotEmpty(t, blocks, page)
		const mark = "== end of a block =="
		script := "set -eu\n"
		for _, block := range blocks {
			script += strings.ReplaceAll(block.script, "/tmp/tes.json", file) + "echo '" + mark + "'\n"
		}

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		shell := exec.CommandContext(ctx, "sh", "-s")
		shell.Env, shell.Stdin = []string{"PATH=" + programs}, strings.NewReader(script)
		printed, err := shell.CombinedOutput()
		require.NoError(t, err, "%s:\n%s", page, printed)
		outputs := strings.Split(string(printed), mark+"\n")
		require.Len(t, outputs, len(blocks)+1, "%s:\n%s", page, printed)
		for i, block := range blocks {
			at := fmt.Sprintf("%s:%d", page, block.line)
			if !block.shown {
				require.Empty(t, outputs[i], "%s prints what the page does not show", at)
				continue
			}
			if !regexp.MustCompile(wildcards(block.output)).MatchString(outputs[i]) {
				t.Errorf("%s: the page shows\n%s\nand the block prints\n%s", at, block.output, outputs[i])
			}
		}
	}
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}

// wildcards makes a pattern of the output that a page shows: … stands for any part of a line.
func wildcards(output string) string {
	return "^" + strings.ReplaceAll(regexp.QuoteMeta(output), "…", `[^\n]*`) + "$"
}

// onlyPrograms returns a directory for PATH that has these programs and no others.
func onlyPrograms(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		path, err := exec.LookPath(name)
		require.NoError(t, err, "the pages need %s", name)
		require.NoError(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	return dir
}
