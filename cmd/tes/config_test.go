package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/bucket"
)

// variables are the names of everything that may be set.
func variables() []string {
	var names []string
	for field := range reflect.TypeFor[Config]().Fields() {
		if name := field.Tag.Get("env"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func TestConfigOfAnEmptyEnvironment(t *testing.T) {
	t.Parallel()
	c, err := readConfig([]string{"HOME=/root", "PATH=", "DATABASE_URL=postgres://elsewhere", "TESTING=1", "", "TES"})
	require.NoError(t, err)
	require.Equal(t, unset, c)
}

// unset is what an empty environment says.
var unset = Config{
	grace: 20 * time.Second, due: 24 * time.Hour,
	limits: api.Limits{Tenants: bucket.Limit{Rate: 1000, Burst: 2000}, FailedTokens: bucket.Limit{Rate: 10, Burst: 50}},
}

// A rate that is set holds for callers without a tenant too, and 0 is none.
func TestConfigOfLimits(t *testing.T) {
	t.Parallel()
	c, err := readConfig([]string{"TES_RATE_LIMIT=0.5", "TES_RATE_BURST=7", "TES_FAILED_TOKEN_LIMIT=0", "TES_TRUSTED_PROXIES=10.0.0.0/8"})
	require.NoError(t, err)
	limit := bucket.Limit{Rate: 0.5, Burst: 7}
	require.Equal(t, limit, c.limits.Tenants)
	require.Equal(t, limit, c.limits.Others)
	require.True(t, c.limits.FailedTokens.Off())
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, c.limits.Proxies)

	c, err = readConfig([]string{"TES_RATE_LIMIT=0"})
	require.NoError(t, err)
	require.True(t, c.limits.Tenants.Off())
	require.True(t, c.limits.Others.Off())
	for _, wrong := range []string{"TES_RATE_LIMIT=-1", "TES_RATE_LIMIT=NaN", "TES_RATE_LIMIT=1e9", "TES_RATE_BURST=many", "TES_FAILED_TOKEN_LIMIT=0.001", "TES_TRUSTED_PROXIES=10.0.0.1"} {
		_, err := readConfig([]string{wrong})
		require.ErrorContains(t, err, wrong[:strings.IndexByte(wrong, '=')])
	}
}

// Whatever may be set is set, each in its own field, and listed in the help.
func TestConfigReadsEveryVariable(t *testing.T) {
	t.Parallel()
	good := map[string]string{
		"TES_PG_PORT": "15432", "TES_PG_SYSTEM": "off", "TES_PG_DOWNLOAD": "on", "TES_NATS_SYNC": "off", "TES_LOG_LEVEL": "debug",
		"TES_LOG_FORMAT": "json", "TES_SHUTDOWN_GRACE": "3s", "TES_DRAIN_DELAY": "1s", "TES_MANUAL_DUE": "48h", "TES_TOKEN_MAX_LIFE": "1h", "TES_REQUIRE_USER_TOKEN": "true",
		"TES_RATE_LIMIT": "500", "TES_RATE_BURST": "800", "TES_FAILED_TOKEN_LIMIT": "5", "TES_TRUSTED_PROXIES": "10.0.0.0/8",
		"TES_CALLBACK_SECRET": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0 whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "TES_HTTP_ALLOW": " 10.1.0.0/16, ::1/128,",
		"TES_NATS_URL": "nats://u:p@a:4222, b", "TES_NATS_REPLICAS": "3",
		"TES_HTTP": "[::1]:http", "TES_DATABASE_URL": "postgres://u:p@h:1/d?pool_max_conns=3", "TES_DATABASE_DIRECT_URL": "postgres://u:p@h:2/d",
	}
	help := settings()
	for _, name := range variables() {
		text := good[name]
		if text == "" {
			text = "some text of " + name
		}
		c, err := readConfig([]string{name + "=" + text})
		require.NoError(t, err, name)
		value := reflect.ValueOf(c)
		set := 0
		for field, v := range value.Fields() {
			if field.Tag.Get("env") == "" || v.IsZero() {
				continue
			}
			set++
			require.Equal(t, name, field.Tag.Get("env"))
			require.Equal(t, text, fmt.Sprint(v.Interface()))
		}
		require.Equal(t, 1, set, name)
		require.Contains(t, help, name+" ")

		c, err = readConfig([]string{name + "="})
		require.NoError(t, err, "%s: empty is as unset", name)
		require.Equal(t, unset, c)
	}

	c, err := readConfig([]string{"TES_SHUTDOWN_GRACE=3s", "TES_MANUAL_DUE=48h", "TES_HTTP_ALLOW= 10.1.0.0/16, ::1/128,"})
	require.NoError(t, err)
	require.Equal(t, 3*time.Second, c.grace)
	require.Equal(t, 48*time.Hour, c.due)
	require.Equal(t, "[10.1.0.0/16 ::1/128]", fmt.Sprint(c.allow))
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	for entry, text := range map[string]string{
		"TES_PG_PORT=http":            `TES_PG_PORT: "http" is not a port`,
		"TES_PG_PORT=-1":              `TES_PG_PORT: "-1" is not a port`,
		"TES_PG_PORT=65536":           `TES_PG_PORT: "65536" is not a port`,
		"TES_PG_PORT= 5432":           `TES_PG_PORT: " 5432" is not a port`,
		"TES_PG_SYSTEM=no":            `TES_PG_SYSTEM: "no" is none of on, off`,
		"TES_PG_DOWNLOAD=false":       `TES_PG_DOWNLOAD: "false" is none of on, off`,
		"TES_NATS_SYNC=OFF":           `TES_NATS_SYNC: "OFF" is none of on, off`,
		"TES_NATS_REPLICAS=0":         `TES_NATS_REPLICAS: "0" is no number from 1 to 5`,
		"TES_NATS_REPLICAS=6":         `TES_NATS_REPLICAS: "6" is no number from 1 to 5`,
		"TES_NATS_REPLICAS=R3":        `TES_NATS_REPLICAS: "R3" is no number from 1 to 5`,
		"TES_NATS_URL=nats://u:p@[":   `TES_NATS_URL: the NATS URL [ cannot be read`,
		"TES_LOG_LEVEL=verbose":       `TES_LOG_LEVEL: "verbose" is none of debug, info, warn, error`,
		"TES_LOG_FORMAT=xml":          `TES_LOG_FORMAT: "xml" is none of json, text`,
		"TES_SHUTDOWN_GRACE=20":       `TES_SHUTDOWN_GRACE: "20" is not a duration such as 20s`,
		"TES_SHUTDOWN_GRACE=0s":       `TES_SHUTDOWN_GRACE: "0s" is not a duration such as 20s`,
		"TES_SHUTDOWN_GRACE=-5s":      `TES_SHUTDOWN_GRACE: "-5s" is not a duration such as 20s`,
		"TES_TOKEN_MAX_LIFE=0s":       `TES_TOKEN_MAX_LIFE: "0s" is not a duration such as 20s`,
		"TES_TOKEN_MAX_LIFE=day":      `TES_TOKEN_MAX_LIFE: "day" is not a duration such as 20s`,
		"TES_MANUAL_DUE=1d":           `TES_MANUAL_DUE: "1d" is not a duration such as 20s`,
		"TES_HTTP_ALLOW=10.1.0.0":     `TES_HTTP_ALLOW: "10.1.0.0" is not a network such as 10.1.0.0/16`,
		"TES_HTTP_ALLOW=10.0.0.0/8,x": `TES_HTTP_ALLOW: "x" is not a network such as 10.1.0.0/16`,
		"TES_HTTP=zork":               `TES_HTTP: "zork" is not HOST:PORT, such as 127.0.0.1:8080`,
		"TES_HTTP=127.0.0.1:65536":    `TES_HTTP: "127.0.0.1:65536" is not HOST:PORT`,
		"TES_DATABASE_URL=zork":       `TES_DATABASE_URL: it is no connection string such as postgres://`,
		"TES_=":                       `unknown variable TES_`,
		"TES_zzz=1":                   `unknown variable TES_zzz`,
		"TES_DATA_DIR_FILES=x":        `unknown variable TES_DATA_DIR_FILES (did you mean TES_DATA_DIR?)`,
		"TES_SERVICE_TOKEN_FILE=/no":  `TES_SERVICE_TOKEN_FILE: open /no: no such file or directory`,
		"TES_NO_SUCH_FILE=/etc/motd":  `unknown variable TES_NO_SUCH_FILE`,
		"TES_SECRET_DIR=/run/secrets": `unknown variable TES_SECRET_DIR (did you mean TES_SECRETS_DIR?)`,
		"TES_SECRET_=x":               `TES_SECRET_: a secret's variable ends in its name`,
		"TES_SECRET_key=x":            `TES_SECRET_key: a secret's variable ends in its name, in capital letters`,
		"TES_SECRET_KEY_FILE=/a":      `TES_SECRET_KEY_FILE: a secret in a file belongs into TES_SECRETS_DIR`,
	} {
		_, err := readConfig([]string{entry})
		require.ErrorContains(t, err, text, entry)
	}

	// All that is wrong is said at once.
	_, err := readConfig([]string{"TES_PG_PORT=x", "TES_LOG_LEVEL=y", "TES_NOSUCH=1", "TES_MANUAL_DUE=z"})
	for _, text := range []string{"TES_PG_PORT", "TES_LOG_LEVEL", "TES_NOSUCH", "TES_MANUAL_DUE"} {
		require.ErrorContains(t, err, text)
	}
}

// A slip of the finger finds the variable that was meant.
func TestConfigProposesWhatWasMeant(t *testing.T) {
	t.Parallel()
	known := variables()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(known).Draw(t, "variable")
		at := rapid.IntRange(len("TES_"), len(name)-2).Draw(t, "place")
		var typo string
		switch rapid.SampledFrom([]string{"left out", "twice", "swapped"}).Draw(t, "slip") {
		case "left out":
			typo = name[:at] + name[at+1:]
		case "twice":
			typo = name[:at+1] + name[at:]
		case "swapped":
			typo = name[:at] + name[at+1:at+2] + name[at:at+1] + name[at+2:]
		}
		_, err := readConfig([]string{typo + "=1"})
		if typo == name {
			return
		}
		if err == nil || !strings.Contains(err.Error(), "unknown variable "+typo+" (did you mean "+name+"?)") {
			t.Fatalf("%s: %v", typo, err)
		}
	})
}

func TestConfigFromAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	c, err := readConfig([]string{
		"TES_SERVICE_TOKEN_FILE=" + file("token", "eyJhbGciOiJFUzI1NiJ9\n"),
		"TES_DATABASE_URL_FILE=" + file("url", "  postgres://tes@db/tes \r\n"),
		"TES_PG_PORT_FILE=" + file("port", "5433\n"),
	})
	require.NoError(t, err)
	require.Equal(t, "eyJhbGciOiJFUzI1NiJ9", c.ServiceTok)
	require.Equal(t, "postgres://tes@db/tes", c.DatabaseURL)
	require.Equal(t, 5433, c.PGPort)

	// What a file holds is checked as if it had been said at once.
	_, err = readConfig([]string{"TES_LOG_LEVEL_FILE=" + file("level", "loud")})
	require.ErrorContains(t, err, `TES_LOG_LEVEL: "loud" is none of`)
	_, err = readConfig([]string{"TES_SERVICE_TOKEN_FILE=" + dir})
	require.ErrorContains(t, err, "TES_SERVICE_TOKEN_FILE: ")
}

// The platform's secrets are variables without a list: each by its own name.
func TestConfigTakesSecrets(t *testing.T) {
	t.Parallel()
	c, err := readConfig([]string{"TES_SECRET_PAY_KEY=" + canary, "TES_SECRET_2=x=y", "TES_SECRETS_DIR=/run/secrets"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"PAY_KEY": canary, "2": "x=y"}, c.headerSecrets)
	require.Equal(t, "/run/secrets", c.SecretsDir)
	_, err = readConfig([]string{"TES_SECRET_pay=" + canary, "TES_SECRET_PAY_FILE=" + canary})
	require.Error(t, err)
	require.NotContains(t, err.Error(), canary)
}

// The variables of the tests are none of ours, and no mistake.
func TestConfigLeavesTheTestsTheirOwn(t *testing.T) {
	t.Parallel()
	c, err := readConfig([]string{"TES_TEST_DATABASE_URL=postgres://tests"})
	require.NoError(t, err)
	require.Empty(t, c.DatabaseURL)
}

// An error names the variable; a secret that is in it stays where it is.
func TestConfigErrorsHoldNoSecret(t *testing.T) {
	t.Parallel()
	_, err := readConfig([]string{
		"TES_SERVICE_TOKEN=" + canary, "TES_NATS_TOKEN=" + canary, "TES_DATABASE_URL=postgres://u:" + canary + "@h/d",
		"TES_SERVICE_TOKENS=" + canary, "TES_NATS_TOKE=" + canary, "TES_NATS_TOKEN_FILE_=" + canary,
	})
	require.Error(t, err)
	require.NotContains(t, err.Error(), canary)
}

// No environment makes it panic, and it never takes what it does not know.
func FuzzReadConfig(f *testing.F) {
	for _, name := range variables() {
		f.Add(name, "1", "TES_LOG_LEVEL", "debug")
		f.Add(name+"_FILE", "/dev/null", name, "x")
	}
	f.Add("TES_", "", "", "=")
	f.Add("TES_HTTP_ALLOW", "::/0,,,1.2.3.4/33", "TES_SHUTDOWN_GRACE", "9999999999h")
	f.Add("TES__FILE", "", "TES_\x00", "\xff")
	f.Fuzz(func(t *testing.T, name1, text1, name2, text2 string) {
		var env []string
		known := map[string]bool{"TES_TEST_DATABASE_URL": true}
		for _, name := range variables() {
			known[name], known[name+"_FILE"] = true, true
		}
		unknown := false
		for _, pair := range [][2]string{{name1, text1}, {name2, text2}} {
			name, _, _ := strings.Cut(pair[0]+"=", "=")
			if strings.HasSuffix(name, "_FILE") {
				pair[1] = "/dev/null" // what else is on this machine is nobody's business
				pair[0] = name
			}
			unknown = unknown || strings.HasPrefix(name, "TES_") && !strings.HasPrefix(name, "TES_SECRET_") && !known[name]
			env = append(env, pair[0]+"="+pair[1])
		}
		c, err := readConfig(env)
		if err == nil && unknown {
			t.Fatalf("%q were taken: %+v", env, c)
		}
		if err == nil && (c.grace <= 0 || c.due <= 0 || c.PGPort < 0 || c.PGPort > 65535) {
			t.Fatalf("%q: %+v", env, c)
		}
	})
}
