package localpg

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxUnpacked is the maximum size of an unpacked package; the largest has 145 MB.
const maxUnpacked = 1 << 30

// unpack extracts the directory native of a package. All files are written through an
// os.Root, so that neither a name nor a link can lead out of dir.
func unpack(tarball, dir string) error {
	file, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer file.Close()

	zip, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		return err
	}

	if err := MkdirAll(dir, 0o755); err != nil {
		return err
	}

	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()

	archive := tar.NewReader(io.LimitReader(zip, maxUnpacked))
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}

		if err != nil {
			return err
		}

		if err := unpackEntry(root, entry, archive); err != nil {
			return fmt.Errorf("%s: %w", entry.Name, err)
		}
	}

	if err := linkLibraries(root); err != nil {
		return err
	}

	// An incomplete directory in the cache would fail at every start.
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := root.Stat("native/bin/" + name); err != nil {
			return fmt.Errorf("the package is not complete: %w", err)
		}
	}

	return nil
}

func unpackEntry(root *os.Root, entry *tar.Header, content io.Reader) error {
	if entry.Typeflag == tar.TypeDir {
		// Directories are made with their first file.
		return nil
	}

	if entry.Typeflag != tar.TypeReg {
		return fmt.Errorf("neither a file nor a directory (type %q)", entry.Typeflag)
	}

	name, ok := strings.CutPrefix(entry.Name, "package/")
	if !ok || !filepath.IsLocal(name) {
		return errors.New("a path out of the package")
	}
	if !strings.HasPrefix(name, "native/") {
		// The JavaScript of the package.
		return nil
	}

	if err := rootMkdirAll(root, path.Dir(name)); err != nil {
		return err
	}

	mode := os.FileMode(0o644)
	if entry.Mode&0o100 != 0 {
		mode = 0o755
	}

	file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}

	_, err = io.Copy(file, content)
	return errors.Join(err, file.Chmod(mode), file.Close())
}

// rootMkdirAll makes directories that every account can search, independent of the umask.
func rootMkdirAll(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}

	if _, err := root.Stat(dir); err == nil {
		return nil
	}

	if err := rootMkdirAll(root, path.Dir(dir)); err != nil {
		return err
	}

	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}

	return root.Chmod(dir, 0o755)
}

// linkLibraries makes the symbolic links between libraries. npm packages cannot contain
// links; the package has a list for its install script, which is not run.
func linkLibraries(root *os.Root) error {
	text, err := root.ReadFile("native/pg-symlinks.json")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}

	if err != nil {
		return err
	}

	var links []struct {
		Source string `json:"source"` // the file
		Target string `json:"target"` // the link to it
	}

	if err := json.Unmarshal(text, &links); err != nil {
		return fmt.Errorf("native/pg-symlinks.json: %w", err)
	}

	for _, link := range links {
		if !filepath.IsLocal(link.Source) || !filepath.IsLocal(link.Target) {
			return fmt.Errorf("native/pg-symlinks.json: %s → %s: a path out of the package", link.Target, link.Source)
		}

		// Relative links, so that the directory can be renamed.
		to, err := filepath.Rel(path.Dir(link.Target), link.Source)
		if err != nil {
			return fmt.Errorf("native/pg-symlinks.json: %w", err)
		}

		if err := root.Symlink(to, link.Target); err != nil {
			return fmt.Errorf("native/pg-symlinks.json: %w", err)
		}
	}

	return nil
}
