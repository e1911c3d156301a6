// Package config reads the one file and nothing else; it owns the schema.
//
//	file, err := config.Read("sallyport.yaml")
//	if err != nil {
//		fmt.Fprintln(os.Stderr, err) // every error, with its line, and what to write instead
//	}
//
// The file is described once, by the tree of keys in describe.go. From it come what is accepted (read.go), the JSON
// Schema for editors (Schema), and the manual, doc/configuration.md. What a tree cannot say, because it is about two
// keys at once, stands in the files named decode, beside the code that fills the structures of the services.
//
// What is refused, besides what does not fit the tree: whatever YAML has that makes a file mean other than it looks
// (aliases, anchors, tags, merge keys, directives, a second document), and whatever a reader would not see (control
// characters, marks that turn the direction of text). Unset means closed.
//
// Limits: a file has at most 1 MiB and is nested at most 12 deep; the first 100 errors are reported. The files that it
// names are not opened here: whether they exist is for their services to say. Only the links of sandbox.sockets are
// followed, since one socket has many names.
package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sandbox"
	"github.com/sallyport/sallyport/internal/state"
)

// File is a configuration that was read whole and found without error. Relative paths in it have been made
// absolute: they are relative to the file.
type File struct {
	Path    string // where it was read
	Ingress Ingress
	Egress  Egress
	Sandbox sandbox.Profile
	Preload string // sandbox.preload: "node", "none" or empty
	Audit   audit.Config
	State   state.Config
	Keys    keys.Config
	Watch   Watch
	Admin   Admin

	Reload    Reload
	Telemetry *Telemetry // nil: no trace is sent
	AccessLog AccessLog

	Digest   Digest // of the file's bytes
	Warnings Errors // what is not wrong and yet should be known: a public route that has expired, for example; not nil
}

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// String is in hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Ingress is the gate in front.
type Ingress struct {
	Listen           string // "host:port", ":port" or "unix:PATH"
	TLS              *TLS
	Upstream         *url.URL // nil, as Listen is empty, where proxies only ask
	ForwardAuth      *ForwardAuth
	ExtAuthz         *ExtAuthz
	Protocols        []string // of ingress.Config
	TrustedProxies   []netip.Prefix
	ProxyProtocol    *ingress.ProxyProtocol // nil: no peer sends a PROXY header
	SPIFFE           *ingress.SPIFFE        // what a certificate of a client must be, besides what TLS.ClientCA says; nil: nothing
	Peers            *ingress.Peers         // who may connect to a unix socket; nil: whoever its file lets
	Issuers          []bearer.Issuer
	Events           map[string][]string // by issuer, the names under which its security events are taken; an issuer that is not there sends none
	Routes           []policy.Route
	Policy           *policy.Policy // the same, compiled: reading the file has checked every pattern and expression
	Assertion        *Assertion
	Hops             []Hop
	CORS             *ingress.CORS
	Limits           ingress.Limits
	RateLimits       ingress.RateLimits // besides those of Routes
	Realm            string
	Engine           string            // net/http or http1
	PublicURL        string            // what clients' URLs begin with; empty: no DPoP proof is accepted
	ResourceMetadata string            // URL (RFC 9728), named in challenges
	Metadata         *ingress.Metadata // that the gate tells there itself; nil: it does not
	TokenCache       int64             // bytes for what is remembered of tokens; 0: nothing is
	KeepKeys         string            // folder for the issuers' last good keys; empty: they are not kept
}

// TLS names the files of a listener's certificate. They are read again when they change.
type TLS struct {
	Cert, Key, ClientCA string
	ClientCertificates  string // "requested": asked for and not judged by themselves; empty: as ClientCA says
}

// Assertion is what the service receives in place of the token.
type Assertion struct {
	Issuer      string // empty means "sallyport"
	Audience    string
	TrustDomain string        // empty: the audience
	Lifetime    time.Duration // 60 s unless written
	Reuse       time.Duration // 0 unless written
	Header      string        // "Txn-Token" unless written
	Claims      []string
}

// Hop is another gate whose transaction tokens are believed.
type Hop struct {
	Issuer  string
	Keys    bearer.Keys // a URI or a file
	Scopes  []string
	Callers []string
}

// Egress is the gate behind. The zero value lets nothing out.
type Egress struct {
	Listen string // "host:port" on loopback or "unix:PATH"; empty: no forward proxy
	Rules  egress.Rules
	Limits egress.Limits
}

// Watch is what raises alarms. The zero value has the rules that come with sallyport, and sends alarms nowhere.
type Watch struct {
	Rules    string // a file of package watch's rules
	Baseline string // a file
	Webhook  *Webhook
}

// Webhook is where alarms are sent.
type Webhook struct {
	URL        string
	SecretFile string // empty: none is sent
}

// Admin is the listener for operators.
type Admin struct{ Listen string } // "unix:PATH" or "127.0.0.1:port"; empty: none

// Read reads and checks a file. Its error is Errors when the file could be read.
func Read(path string) (*File, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the folder of %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err // "open PATH: reason"
	}
	defer f.Close()
	// One byte more than is allowed, so that Parse can tell; a size asked for beforehand could change.
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err // "read PATH: reason"
	}
	file, err := parse(source{name: path, dir: filepath.Dir(abs), path: abs}, data, time.Now())
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Parse is Read for bytes that are not in a file; name stands in the errors, dir is what relative paths are relative to.
func Parse(name, dir string, data []byte) (*File, error) {
	return parse(source{name: name, dir: dir}, data, time.Now())
}

// source is where a file comes from: the name for errors, the folder for relative paths, and its own absolute path,
// empty where there is none.
type source struct{ name, dir, path string }

func parse(from source, data []byte, now time.Time) (*File, error) {
	name := from.name
	if len(data) > maxSize {
		return nil, Errors{{File: name, Line: 1, Column: 1, Message: fmt.Sprintf("the file is larger than %s", amount(maxSize))}}
	}
	node, errs := load(name, data)
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	root := describe()
	r := &reader{source: from, root: root, patterns: map[string]*regexp.Regexp{}, warnings: Errors{}}
	file := r.decode(r.read(root, "", node), now)
	if len(r.errs) > 0 {
		return nil, r.errs.sorted()
	}
	file.Path = cmp.Or(from.path, name)
	file.Digest = sha256.Sum256(data)
	file.Warnings = r.warnings.sorted()
	return file, nil
}
