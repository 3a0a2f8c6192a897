package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/contract.md names a place and a test for each row of the interface document:
// they are there.
func TestContract(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/contract.md")
	require.NoError(t, err)
	tests := testNames(t)
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || cells[1] == " row " {
			continue
		}
		rows++
		names := regexp.MustCompile(`Test\w+`).FindAllString(cells[3], -1)
		require.True(t, len(names) > 0 || strings.Contains(cells[3], "the same"), "no test shows %s", cells[1])
		for _, name := range names {
			require.True(t, slices.Contains(tests, name), "%s, which shall show %s, is not there", name, cells[1])
		}
		for _, place := range regexp.MustCompile("`([a-z/]+(?:\\.go)?)`").FindAllStringSubmatch(cells[2], -1) {
			_, err := os.Stat("../../" + place[1])
			require.NoError(t, err, cells[1])
		}
	}
	require.Greater(t, rows, 40)
}

// Each test that a page names, be it a promise in docs/security.md or a command, is there.
func TestPagesNameTestsThatExist(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	pages, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	require.Contains(t, pages, "../../docs/security.md")

	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, name := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllSubmatch(text, -1) {
			require.Contains(t, tests, string(name[1]), "%s names a test that is not there", page)
		}
		for _, command := range regexp.MustCompile("`go test [^`]*-run '?([^'` ]+)").FindAllSubmatch(text, -1) {
			for one := range strings.SplitSeq(strings.ReplaceAll(string(command[1]), `\|`, "|"), "|") {
				matches := func(name string) bool { return regexp.MustCompile(one).MatchString(name) }
				require.True(t, slices.ContainsFunc(tests, matches), "%s runs tests that are not there: %s", page, one)
			}
		}
	}
}

// testNames lists every test and fuzz test of the repository.
func testNames(t *testing.T) (names []string) {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	require.NoError(t, filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range declared.FindAllSubmatch(text, -1) {
			names = append(names, string(found[1]))
		}
		return err
	}))
	return names
}
