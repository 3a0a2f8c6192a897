package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"golang.org/x/time/rate"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

var (
	// errNoKeys means that no key set has been fetched yet, so that no token can be verified.
	errNoKeys = errors.New("the auth service's keys are not known yet")
	// errKeysLate means that the token's key is unknown, and that the Auth Service did not respond in
	// time. The key may be a new one.
	errKeysLate = errors.New("the auth service did not respond in time to a request for new keys")
)

// The bounds of a key set and of its fetches.
const (
	maxKeySet     = 1 << 20
	maxKeys       = 64
	minRSABits    = 2048
	fetchTime     = 5 * time.Second
	firstWait     = 2 * time.Second        // for the very first fetch, before which no key is known
	unknownWait   = 100 * time.Millisecond // the total wait of a request with an unknown key
	unknownPerSec = 1
	unknownBurst  = 3
)

// keySet holds the Auth Service's public keys. A goroutine refreshes them periodically; an unknown
// key id triggers an additional fetch, within limits, which is how a rotation is noticed. An
// invalid set is ignored and the last good one stays in use.
//
// jwkset's own HTTP storage does none of this: it reads a body of any size, follows redirects, and
// fetches within the limiter's wait.
type keySet struct {
	*jwkset.MemoryJWKSet
	url     string
	client  *http.Client
	every   time.Duration
	log     *slog.Logger
	unknown *rate.Limiter
	known   atomic.Bool // at least one good set has been fetched
	asked   atomic.Bool // at least one fetch has ended, successful or not

	ctx    context.Context
	cancel context.CancelFunc
	busy   sync.WaitGroup
	mu     sync.Mutex
	flight *flight // guarded by mu; the running fetch; nil: none
}

// flight is one fetch. All requests that need it wait for the same one.
type flight struct {
	began time.Time
	done  chan struct{} // closed when the fetch has ended, successful or not
}

func newKeySet(url string, transport http.RoundTripper, every time.Duration, log *slog.Logger) *keySet {
	k := &keySet{
		MemoryJWKSet: jwkset.NewMemoryStorage(), url: url, every: every, log: log,
		unknown: rate.NewLimiter(unknownPerSec, unknownBurst),
		client: &http.Client{
			Transport: transport, Timeout: fetchTime,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}

	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.busy.Add(1)
	go k.keepFresh()
	return k
}

func (k *keySet) close() {
	k.cancel()
	k.busy.Wait()
	k.client.CloseIdleConnections()
}

// keepFresh fetches at once, again soon while fetches fail, and periodically after that: a revoked
// key must not stay valid here.
func (k *keySet) keepFresh() {
	defer k.busy.Done()
	failures := 0
	for {
		<-k.fetchOnce().done
		wait := k.every
		if k.known.Load() {
			failures = 0
		} else {
			wait = min(time.Second<<min(failures, 5), k.every)
			failures++
		}

		// Jitter, so that the processes do not fetch at the same moment.
		wait += time.Duration(rand.Int64N(int64(wait)/10 + 1))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// KeyRead returns a key, and fetches the key set if the key is unknown. ErrKeyNotFound is reliable:
// the Auth Service was asked after the token arrived, or less than a second before, or is
// unreachable.
func (k *keySet) KeyRead(ctx context.Context, kid string) (jwkset.JWK, error) {
	key, err := k.MemoryJWKSet.KeyRead(ctx, kid)
	if err == nil {
		return key, nil
	}

	// The key may be new: the Auth Service rotates keys without notice.
	late := k.refreshFor(ctx, kid)
	if key, err = k.MemoryJWKSet.KeyRead(ctx, kid); err == nil {
		return key, nil
	}

	switch {
	case !k.known.Load():
		return jwkset.JWK{}, errNoKeys
	case late:
		return jwkset.JWK{}, errKeysLate
	}
	// Not err, which quotes the key id.
	return jwkset.JWK{}, jwkset.ErrKeyNotFound
}

// refreshFor waits for a fetch, a new one or the running one, and returns whether the wait was too
// short. Invented key ids cannot cause more than one fetch per second. A hanging Auth Service does
// not hold requests: each waits until the fetch is 100 ms old. The fetch continues after that, so
// that the next request finds its keys.
func (k *keySet) refreshFor(ctx context.Context, kid string) (late bool) {
	// Before the first fetch has ended no token can be verified, so waiting longer is worth it.
	wait := unknownWait
	if !k.asked.Load() {
		wait = firstWait
	}

	came := time.Now()
	ctx, cancel := context.WithDeadline(ctx, came.Add(wait))
	defer cancel()

	for {
		f := k.underWay()
		if f == nil {
			if k.unknown.Wait(ctx) != nil {
				return false
			}
			// Another request may have started a fetch meanwhile, which fetchOnce returns.
			f = k.fetchOnce()
		}

		if !f.ended(ctx, wait) {
			return true
		}
		// A fetch that began before the token arrived may have missed the token's key.
		if _, err := k.MemoryJWKSet.KeyRead(ctx, kid); err == nil || !f.began.Before(came) {
			return false
		}
	}
}

// ended waits until the fetch has ended, but not longer than ctx, nor beyond the given age of the
// fetch.
func (f *flight) ended(ctx context.Context, old time.Duration) bool {
	timer := time.NewTimer(time.Until(f.began.Add(old)))
	defer timer.Stop()
	// An ended fetch counts even if the time is over: select would choose at random.
	select {
	case <-f.done:
		return true
	default:
	}
	select {
	case <-f.done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (k *keySet) underWay() *flight {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.flight
}

// fetchOnce starts a fetch unless one is running.
func (k *keySet) fetchOnce() *flight {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flight != nil {
		return k.flight
	}

	f := &flight{began: time.Now(), done: make(chan struct{})}
	// After close no goroutine may start: Wait has counted them.
	if k.ctx.Err() != nil {
		close(f.done)
		return f
	}

	k.flight = f
	k.busy.Add(1)
	go func() {
		defer k.busy.Done()
		err := k.fetch()
		k.asked.Store(true)
		if err != nil && k.ctx.Err() == nil {
			k.log.LogAttrs(k.ctx, slog.LevelWarn, "the auth service's keys could not be fetched", slog.Bool("have_keys", k.known.Load()), slog.String("error", err.Error()))
		}
		// First the field, then the channel: a waiter that wakes up can start the next fetch.
		k.mu.Lock()
		k.flight = nil
		k.mu.Unlock()
		close(f.done)
	}()
	return f
}

func (k *keySet) fetch() error {
	req, err := http.NewRequestWithContext(k.ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return fmt.Errorf("fetch the key set: %w", err)
	}

	req.Header.Set("Accept", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return fmt.Errorf("fetch the key set: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch the key set: status %d", resp.StatusCode)
	}

	// One byte more than allowed, so that readKeys notices a longer body.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return fmt.Errorf("read the key set: %w", err)
	}

	// All keys are replaced at once, so that a revoked key is gone.
	keys, err := readKeys(body)
	if err != nil {
		return fmt.Errorf("read the key set: %w", err)
	}
	if err := k.KeyReplaceAll(k.ctx, keys); err != nil {
		return fmt.Errorf("keep the key set: %w", err)
	}

	k.known.Store(true)
	return nil
}

// readKeys accepts a key set as a whole or not at all. Keys of unused kinds are skipped. A private,
// symmetric or weak key invalidates the set: the Auth Service would not publish one.
func readKeys(body []byte) ([]jwkset.JWK, error) {
	if len(body) > maxKeySet {
		return nil, fmt.Errorf("more than %d bytes", maxKeySet)
	}

	if err := jsonguard.Check(body); err != nil {
		return nil, err
	}

	var set jwkset.JWKSMarshal
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("not a key set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}

	var keys []jwkset.JWK
	seen := map[string]bool{}
	for _, m := range set.Keys {
		if m.D != "" || m.P != "" || m.Q != "" || m.DP != "" || m.DQ != "" || m.QI != "" || m.K != "" || len(m.OTH) > 0 {
			return nil, errors.New("a private or symmetric key")
		}
		// The set may have keys for other purposes, such as encryption.
		alg := algOf(m)
		if alg == "" || m.KID == "" || (m.USE != "" && m.USE != jwkset.UseSig) {
			continue
		}
		if m.ALG != "" && m.ALG != alg {
			return nil, fmt.Errorf("a key of type %.16q is not for %.16q", m.KTY, m.ALG)
		}
		if seen[m.KID] {
			return nil, errors.New("two keys with the same id")
		}
		seen[m.KID] = true
		if alg == jwkset.AlgRS256 {
			if n, err := base64.RawURLEncoding.DecodeString(m.N); err != nil || len(n) < minRSABits/8 {
				return nil, fmt.Errorf("an RSA key of fewer than %d bits", minRSABits)
			}
		}

		// Setting alg makes keyfunc compare it with the token's. Certificates are ignored, and their
		// URLs must not be fetched.
		m.ALG, m.X5U, m.X5C, m.X5T, m.X5TS256 = alg, "", nil, "", ""
		key, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			return nil, fmt.Errorf("a key cannot be read: %w", err)
		}
		keys = append(keys, key)
	}

	if len(keys) == 0 {
		return nil, errors.New("no usable key")
	}

	return keys, nil
}

// algOf is the only algorithm accepted for a key; empty for keys of unused kinds.
func algOf(m jwkset.JWKMarshal) jwkset.ALG {
	switch {
	case m.KTY == jwkset.KtyEC && m.CRV == jwkset.CrvP256:
		return jwkset.AlgES256
	case m.KTY == jwkset.KtyOKP && m.CRV == jwkset.CrvEd25519:
		return jwkset.AlgEdDSA
	case m.KTY == jwkset.KtyRSA && m.ALG != jwkset.AlgPS256 && m.ALG != jwkset.AlgPS384 && m.ALG != jwkset.AlgPS512 && m.ALG != jwkset.AlgRS384 && m.ALG != jwkset.AlgRS512:
		return jwkset.AlgRS256
	}
	return ""
}
