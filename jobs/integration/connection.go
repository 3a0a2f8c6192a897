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

// How long an answer about a connection is gone by. One that is down is asked about
// again soon, for its tasks come back after some seconds.
const (
	connectedFor    = 30 * time.Second
	disconnectedFor = 3 * time.Second
	mostConnections = 4096
	questionTime    = 2 * time.Second
)

// connections remembers what the Integration Service said of each.
type connections struct {
	asking singleflight.Group

	mu    sync.Mutex
	known map[string]verdict // guarded by mu
}

// verdict is what an attempt that needs the connection comes to; nil: it may invoke.
type verdict struct {
	err   error
	until time.Time
}

// check asks about a connection before its first use. Where the question fails, the
// invocation will tell.
func (c *connections) check(ctx context.Context, service Service, instance, connection string) error {
	key := instance + "\x00" + connection
	c.mu.Lock()
	v, found := c.known[key]
	c.mu.Unlock()
	if found && time.Now().Before(v.until) {
		return v.err
	}
	out, _, _ := c.asking.Do(key, func() (any, error) { // who comes meanwhile waits for the same answer
		asked, cancel := context.WithTimeout(ctx, questionTime)
		defer cancel()
		v := judge(service.Connection(asked, instance, connection))
		if !v.until.IsZero() {
			c.remember(key, v)
		}
		return v, nil
	})
	return out.(verdict).err //nolint:forcetypeassert // it is what the function returns
}

func (c *connections) remember(key string, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= mostConnections {
		c.known = map[string]verdict{}
	}
	c.known[key] = v
}

// judge reads the answer. A connection that is down is nobody's failure: its tasks
// wait. One that nobody knows is the definition's.
func judge(status string, err error) verdict {
	var refused *jobs.Failure
	switch {
	case errors.As(err, &refused) && (refused.Code == "NOT_FOUND" || refused.Code == "VALIDATION_ERROR"):
		return verdict{refuse("the integration service knows no such connection"), time.Now().Add(disconnectedFor)}
	case err != nil || status == "":
		return verdict{}
	case strings.EqualFold(status, "CONNECTED") || strings.EqualFold(status, "ACTIVE"):
		return verdict{nil, time.Now().Add(connectedFor)}
	}
	down := &jobs.Outage{Neighbour: "integration", Err: fmt.Errorf("its connection is %.32q", status)}
	return verdict{down, time.Now().Add(disconnectedFor)}
}
