package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/seed-3f7a0631/tes/jobs"
)

// The times for which an answer about a connection is cached. A disconnected connection is
// checked again soon, because its tasks are retried after a few seconds.
const (
	connectedFor    = 30 * time.Second
	disconnectedFor = 3 * time.Second
	mostConnections = 4096
	questionTime    = 2 * time.Second
)

// connections caches the answers of the Integration Service about connections.
type connections struct {
	asking singleflight.Group

	mu    sync.Mutex
	known map[string]verdict // guarded by mu
}

// verdict is the result for an attempt that needs a connection; a nil err allows the call.
type verdict struct {
	err   error
	until time.Time
}

// check asks the Integration Service about a connection before the connection is used. If
// the check itself fails, the invocation is tried anyway, and reports the problem.
func (c *connections) check(ctx context.Context, service Service, instance, connection string) error {
	key := instance + "\x00" + connection
	c.mu.Lock()
	v, found := c.known[key]
	c.mu.Unlock()
	if found && time.Now().Before(v.until) {
		return v.err
	}

	// Concurrent attempts wait for the same answer. If the first attempt ends meanwhile, its check
	// fails, and the others try the invocation.
	out, _, _ := c.asking.Do(key, func() (any, error) {
		asked, cancel := context.WithTimeout(ctx, questionTime)
		defer cancel()

		v := verdictOf(service.Connection(asked, instance, connection))

		// A failed check is not cached.
		if !v.until.IsZero() {
			c.remember(key, v)
		}

		return v, nil
	})

	return out.(verdict).err //nolint:forcetypeassert // the function above returns a verdict
}

func (c *connections) remember(key string, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()

	// Simpler than evicting one entry: a full cache is rare, and refills quickly.
	if c.known == nil || len(c.known) >= mostConnections {
		c.known = map[string]verdict{}
	}

	c.known[key] = v
}

// verdictOf converts an answer. A disconnected connection is an outage: its tasks wait. An
// unknown connection is an error of the definition.
func verdictOf(status string, err error) verdict {
	var refused *jobs.Failure
	switch {
	case errors.As(err, &refused) && (refused.Code == "NOT_FOUND" || refused.Code == "VALIDATION_ERROR"):
		return verdict{refuse("the integration service knows no such connection"), time.Now().Add(disconnectedFor)}
	case err != nil || status == "":
		return verdict{}
	case strings.EqualFold(status, "CONNECTED") || strings.EqualFold(status, "ACTIVE"):
		return verdict{nil, time.Now().Add(connectedFor)}
	}

	down := &jobs.Outage{PeerService: "integration", Err: fmt.Errorf("its connection is %.32q", status)}
	return verdict{down, time.Now().Add(disconnectedFor)}
}
