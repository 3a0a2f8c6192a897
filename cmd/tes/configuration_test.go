package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of docs/configuration.md")

// TestConfigurationTable compares the table of docs/configuration.md with the fields of Config.
func TestConfigurationTable(t *testing.T) {
	t.Parallel()
	const page = "../../docs/configuration.md"
	const begin, end = "<!-- begin: go test ./cmd/tes -run TestConfigurationTable -update -->\n", "<!-- end -->\n"

	text, err := os.ReadFile(page)
	require.NoError(t, err)
	head, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok, "the page has no place for the table")
	_, tail, ok := strings.Cut(rest, end)
	require.True(t, ok, "the table of the page has no end")

	want := head + begin + settingsTable(t) + end + tail
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(text), "run go test ./cmd/tes -run TestConfigurationTable -update")
}

// settingsTable has one row for each setting, in the order of Config.
func settingsTable(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| variable | format | default | read by | what it does |\n|---|---|---|---|---|\n")
	for field := range reflect.TypeFor[Config]().Fields() {
		name := field.Tag.Get("env")
		if name == "" {
			continue
		}
		format, readers := settingForm(field), strings.Fields(field.Tag.Get("for"))
		require.NotEmpty(t, format, "%s has no format", name)
		require.NotEmpty(t, field.Tag.Get("default"), "%s has no default", name)
		require.NotEmpty(t, readers, "%s is read by no command", name)
		for _, reader := range readers {
			require.Contains(t, append(commands, "tests"), reader, name)
		}

		shown := "`" + name + "`"
		if _, secret := field.Tag.Lookup("secret"); secret {
			shown += " **(secret)**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", shown, format, field.Tag.Get("default"), strings.Join(readers, ", "), field.Tag.Get("help"))
	}
	return b.String()
}

// settingForm is the format of the setting's value.
func settingForm(field reflect.StructField) string {
	if values := strings.Fields(field.Tag.Get("oneof")); len(values) > 0 {
		return "`" + strings.Join(values, "`, `") + "`"
	}
	if field.Type.Kind() == reflect.Int {
		return "port"
	}
	return field.Tag.Get("form")
}
