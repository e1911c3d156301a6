package state

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// cluster keeps the state in two key-value buckets of a NATS JetStream cluster. A key is written once and never again, so
// that what was read of it stays true; the servers forget it when its time has come. feed.go brings what others revoke.
type cluster struct {
	*index
	config  Config
	me      string // names this store among those that share the buckets
	log     *slog.Logger
	metrics *metrics
	conn    *nats.Conn
	js      jetstream.JetStream

	buckets   atomic.Pointer[buckets]
	complete  atomic.Pointer[time.Time] // when it was last certain that no revocation is missing
	trouble   atomic.Pointer[error]     // why the feed does not run
	snapshots atomic.Uint32             // readings of the bucket that have begun
	beats     atomic.Uint64             // that were sent: a number is never used again, for an old one may be found in the bucket
	indebted  atomic.Bool               // there may be revocations that hold here and are stored nowhere

	stop   context.CancelFunc
	done   sync.WaitGroup
	ending sync.WaitGroup // readings that have ended and are being put away
	gone   chan struct{}  // closed when the connection is
	closed sync.Once
}

type buckets struct{ revocations, uses jetstream.KeyValue }

const (
	maxRevocationBytes = 256 << 20 // of a bucket, on each server that keeps it
	maxUseBytes        = 512 << 20

	revokePatience = 15 * time.Second // an election after a server is cut off takes up to ten
	oncePatience   = 5 * time.Second
	tryPatience    = time.Second // a server that was asked and then lost answers never
)

// openCluster begins to connect. That nobody answers is no error: the store is not ready then.
func openCluster(c Config, logger *slog.Logger, reg prometheus.Registerer) (_ *cluster, err error) {
	if len(c.URL) == 0 {
		return nil, errors.New("open the state: the url of a NATS server is required")
	}
	if c.Bucket == "" {
		c.Bucket = "sallyport"
	}
	if c.Replicas == 0 {
		c.Replicas = 3
	}
	n := &cluster{index: newIndex(time.Now), config: c, me: strings.ToLower(rand.Text()), log: logger, gone: make(chan struct{})}
	options, err := n.options()
	if err != nil {
		return nil, fmt.Errorf("open the state: %w", err)
	}
	if n.metrics, err = newMetrics(reg, n.held, n.Age); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.metrics.close()
		}
	}()
	if n.conn, err = nats.Connect(strings.Join(c.URL, ","), options...); err != nil {
		return nil, fmt.Errorf("connect to the state's servers: %w", err)
	}
	if n.js, err = jetstream.New(n.conn); err != nil {
		n.conn.Close()
		return nil, fmt.Errorf("connect to the state's servers: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.done.Go(func() { n.follow(ctx) })
	n.done.Go(func() { n.sweepNowAndThen(ctx) })
	return n, nil
}

// options says how to connect: for ever, since a gate does not end because its servers are away, and without keeping what
// could not be sent, since whoever asked has been told.
func (n *cluster) options() ([]nats.Option, error) {
	options := []nats.Option{
		nats.Name("sallyport"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectBufSize(-1),
		nats.Timeout(2 * time.Second), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 400*time.Millisecond),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				n.log.Warn("the connection to the state's servers is lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			n.log.Info("connected to the state's servers again", "server", c.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { n.log.Debug("the state's servers", "error", err) }),
		nats.ClosedHandler(func(*nats.Conn) { close(n.gone) }),
	}
	if n.config.Credentials != "" {
		// Now, where the error is seen; it is read again at each connection.
		if _, err := os.ReadFile(n.config.Credentials); err != nil {
			return nil, fmt.Errorf("read the credentials: %w", err)
		}
		options = append(options, nats.UserCredentials(n.config.Credentials))
	}
	if n.config.CA != "" {
		pem, err := os.ReadFile(n.config.CA)
		if err != nil {
			return nil, fmt.Errorf("read the roots of the servers: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the roots of the servers: no certificate in %s", n.config.CA)
		}
		options = append(options, nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	return options, nil
}

// open finds the buckets, or makes them.
func (n *cluster) open(ctx context.Context) (*buckets, error) {
	if b := n.buckets.Load(); b != nil {
		return b, nil
	}
	var b buckets
	for _, w := range []struct {
		kv       *jetstream.KeyValue
		name     string
		what     string
		maxBytes int64
	}{
		{&b.revocations, n.config.Bucket, "Revocations, by sallyport", maxRevocationBytes},
		{&b.uses, n.config.Bucket + "-once", "Identifiers that may be used once, by sallyport", maxUseBytes},
	} {
		kv, err := n.bucket(ctx, w.name, w.what, w.maxBytes)
		if err != nil {
			return nil, fmt.Errorf("open the bucket %s: %w", w.name, err)
		}
		*w.kv = kv
	}
	n.buckets.Store(&b)
	return &b, nil
}

// bucket opens one bucket, and refuses one that keeps less than it was asked to.
func (n *cluster) bucket(ctx context.Context, name, what string, maxBytes int64) (jetstream.KeyValue, error) {
	kv, err := n.js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = n.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: name, Description: what, History: 1, MaxValueSize: maxStored, MaxBytes: maxBytes,
			Storage: jetstream.FileStorage, Replicas: n.config.Replicas, LimitMarkerTTL: time.Second,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another was faster
			kv, err = n.js.KeyValue(ctx, name)
		}
	}
	if err != nil {
		return nil, err
	}
	stream, err := n.js.Stream(ctx, "KV_"+name)
	if err != nil {
		return nil, err
	}
	switch c := stream.CachedInfo().Config; {
	case c.Replicas < n.config.Replicas:
		return nil, fmt.Errorf("it is kept by %d servers, and state.replicas is %d", c.Replicas, n.config.Replicas)
	case !c.AllowMsgTTL:
		return nil, errors.New("it was made without per-key TTL (limit marker TTL): nothing in it would ever expire")
	case c.Storage != jetstream.FileStorage:
		return nil, errors.New("it is kept in memory alone")
	case c.Discard != jetstream.DiscardNew || c.MaxAge != 0 || c.MaxMsgsPerSubject != 1:
		return nil, errors.New("it forgets entries before their time: discard must be new, max age none, history 1")
	}
	return kv, nil
}

// create puts a value under a key that never had one, and returns when a quorum has it. It reports whether the value under
// the key is this one. Tried again, it takes a value of its own for success: whoever asked before, and heard nothing,
// may have been heard.
func (n *cluster) create(ctx context.Context, kv jetstream.KeyValue, key string, value []byte) (ours bool, err error) {
	ttl := time.Until(time.Unix(0, stampOf(value))).Truncate(time.Second) + time.Second
	for wait, patience := 5*time.Millisecond, tryPatience; ; wait, patience = min(2*wait, 250*time.Millisecond), 2*patience {
		try, cancel := context.WithTimeout(ctx, patience)
		_, err := kv.Create(try, key, value, jetstream.KeyTTL(ttl))
		var found jetstream.KeyValueEntry
		if errors.Is(err, jetstream.ErrKeyExists) {
			// It may be there without being agreed upon yet: what can be read is.
			found, err = kv.Get(try, key)
		}
		cancel()
		switch {
		case errors.Is(err, nats.ErrReconnectBufExceeded): // since nothing is kept for later
			err = errNobody
		case err == nil && found == nil:
			return true, nil
		case err == nil:
			return bytes.Equal(found.Value(), value), nil
		case isFull(err):
			return false, ErrFull
		case isFinal(err):
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("no quorum of the servers answered: %w: %w", ctx.Err(), err)
		case <-n.gone:
			return false, errClosed
		case <-time.After(wait):
		}
	}
}

// isFull reports whether the bucket has no room.
func isFull(err error) bool {
	const maximumBytesExceeded, storeFailed = 10054, 10077
	api := new(jetstream.APIError)
	return errors.As(err, &api) && (api.ErrorCode == maximumBytesExceeded || api.ErrorCode == storeFailed && strings.Contains(api.Description, "maximum"))
}

// isFinal reports whether the servers have answered, and would not answer otherwise.
func isFinal(err error) bool {
	api := new(jetstream.APIError)
	return errors.As(err, &api) && api.Code >= 400 && api.Code < 500 && api.Code != 408 && !errors.Is(err, jetstream.ErrKeyNotFound)
}

// kept is where entries are kept, or why that is nowhere now: whatever was known before, nothing is acknowledged then.
func (n *cluster) kept() (*buckets, error) {
	if b := n.buckets.Load(); b != nil {
		return b, nil
	}
	if err := n.Ready(); err != nil {
		return nil, err
	}
	return nil, errNowhere
}

func revocationKey(r Revocation) string {
	k := keyOf(r)
	return "r." + hex.EncodeToString(k[:])
}

// store has the servers keep what an entry says.
func (n *cluster) store(ctx context.Context, e *entry) error {
	b, err := n.kept()
	if err != nil {
		return err
	}
	r := e.revocation()
	value, err := encode(r)
	if err != nil {
		return err
	}
	// Whoever asked for it: under the key of this revocation nothing else can lie.
	if _, err = n.create(ctx, b.revocations, revocationKey(r), value); err != nil {
		return err
	}
	n.stored(e)
	return nil
}

// Revoke is of Store.
func (n *cluster) Revoke(ctx context.Context, r Revocation) (err error) {
	began := time.Now()
	defer func() { n.metrics.revoked(began, err) }()
	if r.At.IsZero() {
		r.At = began
	}
	if err := r.validate(n.now()); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	if n.conn.IsClosed() {
		return fmt.Errorf("revoke: %w", errClosed)
	}
	a := n.add(r)
	if n.isStored(a.held) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, revokePatience)
	defer cancel()
	if err := n.store(ctx, a.held); err != nil {
		n.indebted.Store(true)
		return fmt.Errorf("revoke: it holds in this process, and the others do not know it yet: %w", err)
	}
	return nil
}

// Revoked is of Store.
func (n *cluster) Revoked(t Token) (Revocation, bool) { return n.revoked(t) }

// Once is of Store.
func (n *cluster) Once(ctx context.Context, kind, ident string, until time.Time) (first bool, err error) {
	defer func() { n.metrics.asked(first, err) }()
	if err := validateOnce(kind, ident, until, n.now()); err != nil {
		return false, fmt.Errorf("use an identifier: %w", err)
	}
	b, err := n.kept()
	if err != nil {
		return false, fmt.Errorf("use an identifier: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, oncePatience)
	defer cancel()
	key := digest("use", kind, ident)
	// What is random in the value tells this use from every other, so that a try that was heard and not answered is known
	// again.
	first, err = n.create(ctx, b.uses, hex.EncodeToString(key[:]), append(stamp(until), rand.Text()...))
	if err != nil {
		return false, fmt.Errorf("use an identifier: %w", err)
	}
	return first, nil
}

// Age is of Store.
func (n *cluster) Age() time.Duration {
	at := n.complete.Load()
	if at == nil {
		return never
	}
	return time.Since(*at)
}

// Ready is of Store.
func (n *cluster) Ready() error {
	if n.conn.IsClosed() {
		return errClosed
	}
	if n.complete.Load() != nil {
		return nil
	}
	err := errors.New("the revocations of the other replicas are not read yet")
	if why := n.trouble.Load(); why != nil {
		err = fmt.Errorf("%w: %w", err, *why)
	}
	return err
}

// Subscribe is of Store.
func (n *cluster) Subscribe(f func(Revocation)) (cancel func()) { return n.subs.add(f) }

// List is of Store.
func (n *cluster) List(limit int) ([]Revocation, int) { return n.list(limit) }

// Close is of Store. What is known stays known: Revoked answers as before.
func (n *cluster) Close() error {
	n.closed.Do(func() {
		n.stop()
		n.done.Wait()
		n.conn.Close()
		<-n.gone
		n.ending.Wait()
		n.metrics.close()
	})
	return nil
}

func (n *cluster) sweepNowAndThen(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.sweep()
		case <-ctx.Done():
			return
		}
	}
}
