package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// openapiCmd prints the OpenAPI document, as the running service serves it.
type openapiCmd struct{}

// Run prints YAML.
func (openapiCmd) Run(s *cmdContext) error {
	text, err := api.OpenAPI()
	if err != nil {
		return err
	}
	s.printf("%s", text)
	return nil
}

// asyncapiCmd prints the AsyncAPI document.
type asyncapiCmd struct{}

// Run prints YAML.
func (asyncapiCmd) Run(s *cmdContext) error {
	text, err := api.AsyncAPI()
	if err != nil {
		return err
	}
	s.printf("%s", text)
	return nil
}

// versionCmd prints the version.
type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run prints the version.
func (c versionCmd) Run(s *cmdContext) error {
	if c.JSON {
		return printJSON(s, map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
	}
	s.printf("tes %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// version is the module's version, or the commit of a local build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}

	// (devel) names no version. A build in a checkout records the commit.
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && info.Main.Version == "(devel)" {
			return setting.Value[:min(12, len(setting.Value))]
		}
	}

	return info.Main.Version
}

// tokenCmd mints a service token, for trials and for services whose key the operator holds.
type tokenCmd struct {
	Key     string        `required:"" type:"existingfile" help:"Private key, PEM (dev prints where its own is)." placeholder:"FILE"`
	Service string        `default:"workflow-orchestrator" help:"Caller: workflow-orchestrator, ui-framework, monitoring-service, task-worker or error-handler; another needs --scope."`
	Scope   []string      `help:"Scopes. Default: those of the caller." placeholder:"SCOPE"`
	Tenant  string        `help:"Tenant. Default: none."`
	TTL     time.Duration `name:"ttl" default:"1h" help:"How long the token is valid."`
}

// Run prints only the token, for scripts.
func (c *tokenCmd) Run(s *cmdContext) error {
	// The scopes of the five callers are known. Those of another service cannot be guessed.
	if len(c.Scope) == 0 && !slices.Contains(callers, c.Service) {
		return &usageError{fmt.Sprintf("--service: %q is none of %s, and has no scopes unless --scope gives it some", c.Service, strings.Join(callers, ", "))}
	}

	for _, scope := range c.Scope {
		if !slices.Contains(api.Scopes, scope) {
			return &usageError{fmt.Sprintf("--scope: %q is none of %s", scope, strings.Join(api.Scopes, ", "))}
		}
	}

	text, err := os.ReadFile(c.Key)
	if err != nil {
		return fmt.Errorf("read the key: %w", err)
	}

	key, err := peertest.ParseKey(text)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Key, err)
	}

	// Only the fake Auth Service signs tokens. The service verifies them.
	token, err := peertest.Mint(key, "", peertest.TokenOptions{Service: c.Service, Scopes: c.Scope, Tenant: c.Tenant, TTL: c.TTL})
	if err != nil {
		return err
	}

	s.printf("%s\n", token)
	return nil
}
