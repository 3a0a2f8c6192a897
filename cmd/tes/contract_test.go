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
	var tests []string
	require.NoError(t, filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllSubmatch(text, -1) {
			tests = append(tests, string(found[1]))
		}
		return err
	}))
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
