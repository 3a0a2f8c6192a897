package localpg

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMoveAsideKeepsEverything(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "tes")
	require.NoError(t, os.MkdirAll(filepath.Join(base, "pg"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(base, "cache"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(base, "pg", "PG_VERSION"), []byte("9\n"), 0o600))

	aside, err := MoveAside(base, "test")
	require.NoError(t, err)
	kept, err := os.ReadFile(filepath.Join(aside, "pg", "PG_VERSION"))
	require.NoError(t, err)
	require.Equal(t, "9\n", string(kept))
	require.DirExists(t, filepath.Join(base, "cache"))
	require.NoDirExists(t, filepath.Join(base, "pg"))

	again, err := MoveAside(base, "test")
	require.NoError(t, err)
	require.Empty(t, again, "there was nothing left to move")
}

func TestMoveAsideRefusesADirectoryInUse(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	held, err := takeLock(filepath.Join(base, "lock"), "tes dev")
	require.NoError(t, err)
	defer held.release()
	_, err = MoveAside(base, "test")
	require.ErrorContains(t, err, "in use by process")
}
