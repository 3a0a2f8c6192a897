package automated

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Secrets are the sources of the secrets that headers refer to by name. The zero value has
// no secrets. Values are read for each attempt, so replacing a file rotates a secret.
//
// A definition of a tenant reads only Dir/tenants/<tenant>/<name>. A definition of the
// platform reads Dir/<name>, or Env if there is no such file; a task of a tenant that uses
// such a definition is sent with the platform's secrets.
type Secrets struct {
	// Dir has one file for each secret; default none. Symbolic links are followed within
	// the directory that the definition may read, as Kubernetes mounts need, and not outside.
	Dir string
	// Env has secrets by EnvName; default none.
	Env map[string]string
}

// EnvName converts a secret's name into the end of an environment variable's name: upper
// case, with an underscore for every character except letters and digits. Several names may
// give the same variable.
func EnvName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}

		return '_'
	}, name)
}

// tenantDirs is the parent of the tenants' directories.
const tenantDirs = "tenants"

// longestSecret is the maximum size of a file; longer headers are never accepted.
const longestSecret = 64 << 10

// The reasons for a missing value. Errors of the system contain the path, and are not shown.
var (
	errNoSecret   = errors.New("is not there")
	errBadSecret  = errors.New("cannot be read: it must be a file of at most 64 KiB, not empty")
	errSecretName = errors.New("has no name that a secret may have")
)

// lookup returns a secret of a tenant; the tenant "" is the platform.
func (s Secrets) lookup(tenant, name string) (string, error) {
	// The name becomes a path.
	if !jobs.ValidSecretName(name) {
		return "", errSecretName
	}

	value, err := s.fromFile(tenant, name)

	// Environment variables belong to the platform, and never to a tenant.
	if tenant == "" && errors.Is(err, errNoSecret) {
		if value, found := s.Env[EnvName(name)]; found && value != "" {
			return value, nil
		}
	}

	return value, err
}

func (s Secrets) fromFile(tenant, name string) (string, error) {
	if s.Dir == "" {
		return "", errNoSecret
	}

	// A Root follows no link out of the directory.
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return "", reasonOf(err)
	}
	defer root.Close()

	if tenant != "" {
		own, err := tenantRoot(root, tenant)
		if err != nil {
			return "", reasonOf(err)
		}
		defer own.Close()

		root = own
	}

	return readSecret(root, name)
}

// tenantRoot opens the directory of a tenant. A link in place of the directory is an error,
// because it could lead to another tenant's directory.
func tenantRoot(root *os.Root, tenant string) (*os.Root, error) {
	for _, dir := range []string{tenantDirs, path.Join(tenantDirs, tenantDir(tenant))} {
		info, err := root.Lstat(dir)
		if err != nil {
			return nil, fmt.Errorf("look for a tenant's secrets: %w", err)
		}

		if !info.IsDir() {
			return nil, errBadSecret
		}
	}

	own, err := root.OpenRoot(path.Join(tenantDirs, tenantDir(tenant)))
	if err != nil {
		return nil, fmt.Errorf("open a tenant's secrets: %w", err)
	}

	return own, nil
}

// tenantDir returns the directory name of a tenant: the tenant's name, with %XX for each byte
// except letters, digits, hyphens, underscores and dots, and for a leading dot. Different
// tenants have different directories.
func tenantDir(tenant string) string {
	var b strings.Builder
	for i := range len(tenant) {
		c := tenant[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}

	return b.String()
}

func readSecret(root *os.Root, name string) (string, error) {
	// Non-blocking: opening a pipe would wait for a writer.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", reasonOf(err)
	}
	defer file.Close()

	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errBadSecret
	}

	raw, err := io.ReadAll(io.LimitReader(file, longestSecret+1))
	// Editors end a file with a line break, which no header may have.
	value := strings.TrimRight(string(raw), "\r\n")
	if err != nil || len(raw) > longestSecret || value == "" {
		return "", errBadSecret
	}

	return value, nil
}

// reasonOf returns an error without details of the directory.
func reasonOf(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errNoSecret
	}
	return errBadSecret
}
