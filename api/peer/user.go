package peer

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
)

// Users calls the User Service. It remembers results for the time of an outage.
type Users struct {
	caller *caller
	known  *otter.Cache[string, knownUsers]
}

// User is a person who can do tasks.
type User struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Roles     []string `json:"roles"`
	Skills    []string `json:"skills"`
	Available bool     `json:"available"`
}

// knownUsers is a remembered result.
type knownUsers struct {
	users []User
	at    time.Time
}

// knownFor is how long a remembered result replaces the service. After a day the definition's
// default is the better guess.
const knownFor = 24 * time.Hour

func newUsers(c *caller) *Users {
	return &Users{
		caller: c,
		known: otter.Must(&otter.Options[string, knownUsers]{
			MaximumWeight: 100_000,
			Weigher:       func(_ string, v knownUsers) uint32 { return uint32(len(v.users)) + 1 },
			Executor:      func(fn func()) { fn() }, // runs maintenance in the caller's goroutine, so that none is left behind
		}),
	}
}

// ByRole finds the users with the role and all the skills; the list may be empty. During an outage
// it returns the last result, up to a day old.
func (c *Users) ByRole(ctx context.Context, role string, skills []string) ([]User, error) {
	// Sorted, so that the same question has the same key, whatever the order of the skills.
	sorted := slices.Sorted(slices.Values(skills))
	query := url.Values{"role": {role}}
	if len(sorted) > 0 {
		query["skill"] = sorted
	}

	return c.recall("role\x00"+role+"\x00"+strings.Join(sorted, "\x00"), func() ([]User, error) {
		var users []User
		err := c.caller.call(ctx, question{method: http.MethodGet, path: "/api/users", query: query}, &users)
		return users, err
	})
}

// Get finds a user; an unknown id is a *jobs.Failure NOT_FOUND. During an outage it returns the
// last result, up to a day old.
func (c *Users) Get(ctx context.Context, id string) (User, error) {
	path, ok := segment(id)
	if !ok {
		return User{}, refusal("VALIDATION_ERROR", "the user's id is not valid")
	}

	users, err := c.recall("id\x00"+id, func() ([]User, error) {
		var user User
		err := c.caller.call(ctx, question{method: http.MethodGet, path: "/api/users/" + path}, &user)
		return []User{user}, err
	})
	if err != nil {
		return User{}, err
	}

	return users[0], nil
}

// recall asks, and falls back to the remembered result of key during an outage. A refusal is a
// result and has no fallback.
func (c *Users) recall(key string, ask func() ([]User, error)) ([]User, error) {
	// A list with an unusable user is refused as a whole: the task might go to the wrong person.
	users, err := ask()
	if err == nil && slices.ContainsFunc(users, func(u User) bool { return u.ID == "" }) {
		err = refusal("INTEGRATION_ERROR", "the user service returned a user without an id")
	}

	if err == nil {
		c.known.Set(key, knownUsers{users: users, at: time.Now()})
		return users, nil
	}

	if past, found := c.known.GetIfPresent(key); found && outage(err) && time.Since(past.at) < knownFor {
		return past.users, nil
	}
	return nil, err
}
