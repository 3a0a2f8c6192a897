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

// Secrets is where the values are that headers refer to by name. The zero value knows
// none. They are read anew for each attempt, so whoever replaces a file rotates a secret.
//
// A tenant's definition reads Dir/tenants/<tenant>/<name> and nothing else. The platform's
// definitions read Dir/<name>, and Env where there is no such file; a task of a tenant
// that uses them is sent with the platform's secrets.
type Secrets struct {
	// Dir has one file a secret; default none. Symbolic links are followed inside the
	// directory that a definition may read, as Kubernetes mounts need, and not out of it.
	Dir string
	// Env is by the name in the form that EnvName makes; default none.
	Env map[string]string
}

// EnvName is a secret's name as a part of an environment variable's: in upper case, with
// an underscore for whatever is no letter or digit. Several names may share a variable.
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

// tenantDirs is the directory of the tenants' directories.
const tenantDirs = "tenants"

// longestSecret bounds what is read of a file; a header of that length is never taken.
const longestSecret = 64 << 10

// Why there is no value. What the system says names the path, and is kept to ourselves.
var (
	errNoSecret   = errors.New("is not there")
	errBadSecret  = errors.New("cannot be read: it must be a file of at most 64 KiB, not empty")
	errSecretName = errors.New("has no name that a secret may have")
)

// lookup finds a secret of a tenant, or of the platform for "".
func (s Secrets) lookup(tenant, name string) (string, error) {
	if !jobs.ValidSecretName(name) {
		return "", errSecretName
	}
	value, err := s.fromFile(tenant, name)
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

// tenantRoot opens the directory of a tenant. It is a directory itself: a link could lead
// to another tenant's.
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

// tenantDir is the name of a tenant's directory: the tenant's, with %XX for each byte that
// is no letter, digit, hyphen, underscore or dot, and for a dot at the beginning. No two
// tenants share one.
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
	// Not blocking: a pipe would wait for somebody to write.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", reasonOf(err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errBadSecret
	}
	raw, err := io.ReadAll(io.LimitReader(file, longestSecret+1))
	value := strings.TrimRight(string(raw), "\r\n")
	if err != nil || len(raw) > longestSecret || value == "" {
		return "", errBadSecret
	}
	return value, nil
}

// reasonOf leaves out what would describe the directory.
func reasonOf(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errNoSecret
	}
	return errBadSecret
}
