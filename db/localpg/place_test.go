package localpg

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Pitfall: between the look at the directory and what root does to it, the account puts
// a link to something else in its place.
func TestSocketDirectoryIsSwappedForALink(t *testing.T) {
	b, dir := setup(t), openDir(t)
	sockets := filepath.Join(dir, "tes-sockets")
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.Mkdir(sockets, 0o711)) // of the last time
	require.NoError(t, b.give(sockets, b.acc))
	require.NoError(t, MkdirAll(victim, 0o751))
	b.at = func(now string) {
		if now == stageSockets {
			require.NoError(t, os.Rename(sockets, sockets+".old"))
			require.NoError(t, os.Symlink(victim, sockets))
		}
	}
	require.NoError(t, b.makeSockets(&place{sockets: sockets}, b.acc))

	info, err := os.Stat(victim)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o751), info.Mode().Perm(), "the victim was touched")
	require.Equal(t, os.Geteuid(), ownerOf(info), "the victim was given away")
	info, err = os.Stat(sockets + ".old")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "what was looked at is what is touched")
	require.Equal(t, b.acc.uid, ownerOf(info))
}

// A link, a file, or a directory of another account in the place of the socket's
// directory is left alone, and another is made.
func TestSocketDirectoryThatIsSomebodysTrap(t *testing.T) {
	b, dir := setup(t), openDir(t)
	victim := filepath.Join(dir, "victim")
	require.NoError(t, MkdirAll(victim, 0o751))
	for name, trap := range map[string]func(path string) error{
		"link":          func(path string) error { return os.Symlink(victim, path) },
		"dangling link": func(path string) error { return os.Symlink(victim+"-none", path) },
		"file":          func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		path := filepath.Join(dir, "tes-"+name)
		require.NoError(t, trap(path), name)
		p := &place{sockets: path}
		require.NoError(t, b.makeSockets(p, b.acc), name)
		require.NotEqual(t, path, p.sockets, name)
		require.NoError(t, os.Remove(p.sockets))
		require.NoError(t, os.Remove(path))
	}
	info, err := os.Stat(victim)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o751), info.Mode().Perm())
	require.Equal(t, os.Geteuid(), ownerOf(info))
}

// What is given to the account is the thing, and not what a link leads to.
func TestGiveDoesNotFollow(t *testing.T) {
	b, dir := setup(t), openDir(t)
	b.asRoot("nobody", "54321")
	acc, err := b.account("")
	require.NoError(t, err)
	given := 0
	b.chown = func(*os.File, int, int) error { given++; return nil }
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, nil, 0o600))
	require.NoError(t, b.give(victim, acc))
	require.NoError(t, os.Symlink(victim, victim+".link"))
	require.Error(t, b.give(victim+".link", acc))
	require.Equal(t, 1, given)
}
