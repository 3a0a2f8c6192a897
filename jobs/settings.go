package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/calendar"
)

// RequestConfig is the executionConfig of a request. It overrides parts of the definition; a task
// without a definition has nothing else.
type RequestConfig struct {
	Timeout     int64        `json:"timeout,omitempty"` // ms
	RetryPolicy *RetryPolicy `json:"retryPolicy,omitempty"`
	ExecutionConfig
}

// settings are the settings of a task: of its definition, except where the request overrides them.
// Shared by tasks: never change them.
type settings struct {
	def        *definition // nil without one
	config     ExecutionConfig
	timeout    time.Duration
	visibility time.Duration
	retry      RetryPolicy
	working    *calendar.Calendar // of the SLA; nil without one
}

// settings returns the settings of a task, from its type, the revision at its creation and its own
// config. The result is cached: thousands of tasks a second share a few settings.
func (t *Tasks) settings(ctx context.Context, kind db.TaskType, of definitionKey, own json.RawMessage) (*settings, error) {
	key := settingsKey{kind, of}
	if s := t.known.get(key, own); s != nil {
		return s, nil
	}

	def, err := t.defs.at(ctx, of)
	if err != nil {
		return nil, err
	}

	var config *RequestConfig
	if len(own) > 0 {
		config = &RequestConfig{}
		if err := json.Unmarshal(own, config); err != nil {
			return nil, fmt.Errorf("read the task's config: %w", err)
		}
	}

	s := combine(Type(kind), def, config)
	if s.config.SLA != nil {
		if s.working, err = s.config.SLA.Calendar.open(); err != nil {
			return nil, fmt.Errorf("read the calendar of %s: %w", of, err)
		}
	}

	t.known.put(key, own, s)
	return s, nil
}

// knownSettings is a bounded cache of settings, which never change.
type knownSettings struct {
	mu  sync.RWMutex
	all map[settingsKey]map[string]*settings // by the task's own config; guarded by mu
	n   int                                  // guarded by mu
}

type settingsKey struct {
	kind db.TaskType
	of   definitionKey // of no task's definition, but for its id, where the revision is 0
}

func (k *knownSettings) get(key settingsKey, own []byte) *settings {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.all[key][string(own)]
}

// longestKnown is the longest config of a task in the cache: the caller chooses the length of a config.
const longestKnown = 4096

func (k *knownSettings) put(key settingsKey, own []byte, s *settings) {
	if len(own) > longestKnown {
		return
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	// A full cache is emptied: simpler than evicting, and soon filled again.
	if k.all == nil || k.n >= cachedDefinitions {
		k.all, k.n = map[settingsKey]map[string]*settings{}, 0
	}
	if k.all[key] == nil {
		k.all[key] = map[string]*settings{}
	}

	k.all[key][string(own)] = s
	k.n++
}

func combine(kind Type, def *definition, own *RequestConfig) *settings {
	s := &settings{
		def: def, timeout: defaultTimeout[kind], visibility: DefaultVisibility, retry: DefaultRetryPolicy(kind),
	}
	if def != nil {
		s.config = def.ExecutionConfig
		s.timeout = time.Duration(def.Timeout) * time.Millisecond
		if def.RetryPolicy != nil {
			s.retry = *def.RetryPolicy
		}
	}

	if own != nil {
		// Of a definition, a request overrides the members below, and no others. Without a definition,
		// its config stands alone.
		if def == nil {
			s.config = own.ExecutionConfig
		}
		if own.Executor != "" {
			s.config.Executor = own.Executor
		}
		if own.SecurityContext != nil {
			s.config.SecurityContext = own.SecurityContext
		}
		if own.VisibilityTimeout != 0 {
			s.config.VisibilityTimeout = own.VisibilityTimeout
		}
		if own.Timeout != 0 {
			s.timeout = time.Duration(own.Timeout) * time.Millisecond
		}
		if own.RetryPolicy != nil {
			s.retry = *own.RetryPolicy
		}
	}

	if s.config.VisibilityTimeout != 0 {
		s.visibility = time.Duration(s.config.VisibilityTimeout) * time.Millisecond
	}

	return s
}
