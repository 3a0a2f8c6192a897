package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"

	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// renewals are the settings that are read again from their files while the service runs. nil and
// the zero value have none.
type renewals struct {
	listener  *watched[identity]        // nil: plain HTTP
	nats      *watched[identity]        // nil: TES_NATS_URL and the system's authorities decide
	peers     *watched[identity]        // nil: the system's authorities
	token     *watched[string]          // nil: Config.ServiceTok, unchanged
	callbacks *watched[webhook.Secrets] // nil: Config.secrets, unchanged
}

// renewable is a watched value of any type.
type renewable interface {
	name() string
	look() (changed bool, err error)
}

// watchFiles reads the files of the settings. An error is a usageError.
func (c Config) watchFiles(log *slog.Logger) (w *renewals, err error) {
	w = &renewals{}

	// Combinations of settings first: their errors say more than those of the files.
	listener := c.listenerFiles()
	if listener.ca != "" && listener.cert == "" && listener.key == "" {
		return nil, &usageError{"TES_TLS_CLIENT_CA is set and TES_TLS_CERT is not: client certificates are asked for over TLS alone, so set TES_TLS_CERT and TES_TLS_KEY too"}
	}

	if w.listener, err = watchIdentity(log, listener); err != nil {
		return nil, err
	}

	if names, _ := c.natsFiles().set(); len(names) > 0 && c.NATSURL == "" {
		return nil, &usageError{names[0] + " is set and TES_NATS_URL is not: the embedded bus has no TLS, so name a server or take the setting away"}
	}

	if w.nats, err = watchIdentity(log, c.natsFiles()); err != nil {
		return nil, err
	}

	if w.peers, err = watchIdentity(log, c.peerFiles()); err != nil {
		return nil, err
	}

	return w, w.watchSecrets(c, log)
}

// watchSecrets watches the secrets whose files can be read again. A secret from a pipe cannot.
func (w *renewals) watchSecrets(c Config, log *slog.Logger) error {
	var err error
	if path := c.files["TES_SERVICE_TOKEN"]; path != "" && c.ServiceTok != "" {
		w.token, err = newWatched(log, "TES_SERVICE_TOKEN_FILE", []string{path}, parseToken)
	}

	if path := c.files["TES_CALLBACK_SECRET"]; path != "" && len(c.secrets) > 0 && err == nil {
		w.callbacks, err = newWatched(log, "TES_CALLBACK_SECRET_FILE", []string{path}, parseCallbackSecrets)
	}

	if err != nil {
		return &usageError{err.Error()}
	}

	return nil
}

// all returns the watched settings.
func (w *renewals) all() (all []renewable) {
	for _, one := range []*watched[identity]{w.listener, w.nats, w.peers} {
		if one != nil {
			all = append(all, one)
		}
	}

	if w.token != nil {
		all = append(all, w.token)
	}
	if w.callbacks != nil {
		all = append(all, w.callbacks)
	}

	return all
}

// parseToken refuses a text that no header can carry. An empty file is usually being written.
func parseToken(texts [][]byte) (string, error) {
	token := strings.TrimSpace(string(texts[0]))
	if token == "" {
		return "", errors.New("TES_SERVICE_TOKEN_FILE: the file is empty")
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("TES_SERVICE_TOKEN_FILE: the file has more than one line, or a letter that no token has")
	}
	return token, nil
}

func parseCallbackSecrets(texts [][]byte) (webhook.Secrets, error) {
	secrets, err := webhook.ParseSecrets(string(texts[0]))
	if err == nil && len(secrets) == 0 {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("TES_CALLBACK_SECRET_FILE: %w", err)
	}
	return secrets, nil
}

// serviceToken returns the token that tes presents. The clients of the peer services call
// serviceToken for each request.
func (s *service) serviceToken(context.Context) (string, error) {
	if s.files != nil && s.files.token != nil {
		return s.files.token.get(), nil
	}
	return s.cfg.ServiceTok, nil
}

// callbackSecrets are the current secrets that sign callbacks.
func (s *service) callbackSecrets() webhook.Secrets {
	if s.files != nil && s.files.callbacks != nil {
		return s.files.callbacks.get()
	}
	return s.cfg.secrets
}

// reload reads the settings again at each SIGHUP until ctx ends, and logs the result. An invalid
// setting never ends the process.
func reload(ctx context.Context, hangups <-chan os.Signal, s *cmdContext, files *renewals, log *slog.Logger) {
	for {
		select {
		case <-hangups:
			reloadOnce(s, files, log)
		case <-ctx.Done():
			return
		}
	}
}

// reloaded is the result of one SIGHUP: names of settings.
type reloaded struct {
	changed, same, restart []string
}

func reloadOnce(s *cmdContext, files *renewals, log *slog.Logger) {
	// Certificates, keys and secrets with a file are read again and take effect here.
	var r reloaded
	var wrong []error
	for _, one := range files.all() {
		changed, err := one.look()
		switch {
		case err != nil:
			wrong = append(wrong, err)
		case changed:
			r.changed = append(r.changed, one.name())
		default:
			r.same = append(r.same, one.name())
		}
	}

	// The other settings are read to name those that have changed and need a restart.
	next, err := readConfig(s.env)
	if err != nil {
		wrong = append(wrong, err)
	} else {
		r.compare(s, next)
	}

	// A single line for the signal: the operator looks for a single answer.
	attrs := []any{"changed", r.changed, "unchanged", r.same}
	if len(r.restart) > 0 {
		attrs = append(attrs, "needRestart", r.restart)
	}

	if len(wrong) > 0 {
		log.Error("SIGHUP: some settings cannot be used, and stay what they were", append(attrs, "error", errors.Join(wrong...))...)
		return
	}

	log.Info("SIGHUP: the settings were read again", attrs...)
}

// compare finds the settings from files that have changed but take effect only after a restart. The
// environment of a process never changes.
func (r *reloaded) compare(s *cmdContext, next Config) {
	// By reflection, so that a new setting cannot be forgotten here.
	was, is := reflect.ValueOf(s.cfg), reflect.ValueOf(next)
	for i := range was.NumField() {
		name := was.Type().Field(i).Tag.Get("env")
		if name == "" || s.cfg.files[name] == "" && next.files[name] == "" {
			continue
		}

		other := !was.Field(i).Equal(is.Field(i))
		switch {
		case name == "TES_LOG_LEVEL":
			// The handler of the log holds the level, and never asks a watched value for it.
			before := s.level.Level()
			s.level.Set(next.level(s.levelDefault))
			if s.level.Level() != before {
				r.changed = append(r.changed, name+"_FILE")
			} else {
				r.same = append(r.same, name+"_FILE")
			}
		case name == "TES_SERVICE_TOKEN" && s.cfg.ServiceTok != "", name == "TES_CALLBACK_SECRET" && len(s.cfg.secrets) > 0:
			// already renewed by their watched values
		case other:
			r.restart = append(r.restart, name+"_FILE")
		}
	}
}
