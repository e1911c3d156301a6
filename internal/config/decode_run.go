package config

import (
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// sandbox decodes the profile. Where the program may listen follows from where the gate forwards to, unless it is
// written; where both are written they must agree, or no request could ever arrive.
func (r *reader) sandbox(v *value, upstream *url.URL) sandbox.Profile {
	env, limits := v.get("env"), v.get("limits")
	p := sandbox.Profile{
		Preset:     v.get("preset").text(),
		User:       v.get("user").text(),
		Read:       v.get("read").texts(),
		Write:      v.get("write").texts(),
		Execute:    v.get("execute").texts(),
		Network:    v.get("network").text(),
		Sockets:    v.get("sockets").texts(),
		UDP:        v.get("udp").text(),
		Env:        sandbox.Env{Pass: env.get("pass").texts(), Set: r.variables(env)},
		Limits:     sandbox.Limits{NoFile: uint64(limits.get("nofile").number()), NProc: uint64(limits.get("nproc").number())},
		AcceptGaps: v.get("accept_gaps").texts(),
		Dir:        v.get("dir").text(),
	}
	if u := v.get("user"); u.ok && slices.Contains(strings.Split(p.User, ":"), "0") && !slices.Contains(p.AcceptGaps, "user") {
		r.fail(u, "for example `65532:65532`; where it cannot be otherwise, `accept_gaps: [user]`", "the program must not run as root")
	}
	if n := v.get("network"); n.ok && p.Network == "none" && upstream != nil && !onSocket(upstream) {
		r.fail(n, "let it listen on a unix socket: `upstream: unix:///run/app/app.sock`", "without internet sockets the program cannot listen on %s", upstream)
	}
	needed, known := upstreamListen(upstream)
	listen := v.get("listen")
	if !listen.isSet {
		if known {
			p.Listen = []sandbox.Listen{needed}
		}
		return p
	}
	for _, e := range listen.entries {
		switch {
		case !e.ok:
		case e.is(integer) && p.Network == "none":
			r.fail(e, "name the path of a unix socket", "without internet sockets the program cannot listen on a port")
		case e.is(integer):
			p.Listen = append(p.Listen, sandbox.Listen{Port: uint16(e.number())})
		case len(e.text()) > maxSocketPath:
			r.fail(e, "", "the socket's path is %d bytes long, and the kernel takes %d", len(e.text()), maxSocketPath)
		default:
			p.Listen = append(p.Listen, sandbox.Listen{Unix: e.text()})
		}
	}
	if known && listen.ok {
		for _, l := range p.Listen {
			if l == needed {
				return p
			}
		}
		r.fail(listen, "add it, or remove `listen`: then it is derived", "the gate forwards to %s, where the program may not listen", upstream)
	}
	return p
}

// upstreamListen is where the program must listen to be reached; false when that is not on this machine.
func upstreamListen(u *url.URL) (sandbox.Listen, bool) {
	switch {
	case u == nil:
	case onSocket(u):
		return sandbox.Listen{Unix: u.Path}, true
	case loopback(u.Hostname()):
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		return sandbox.Listen{Port: uint16(port)}, err == nil
	}
	return sandbox.Listen{}, false
}

// variables decodes what is set in the environment. A secret in the file would be in every copy of it.
func (r *reader) variables(env *value) map[string]string {
	set := env.get("set")
	if len(set.entries) == 0 {
		return nil
	}
	passed := make(map[string]bool)
	for _, name := range env.get("pass").texts() {
		passed[name] = true
	}
	out := make(map[string]string, len(set.entries))
	for i, e := range set.entries {
		name := set.names[i]
		if !e.ok {
			continue
		}
		if why := secretVariable(name, e.text()); why != "" {
			r.fail(e, "secrets are not written in this file: add "+name+" to `pass`, or set "+name+"_FILE to a file that holds it", "%s", why)
		}
		if strings.ContainsRune(e.text(), 0) {
			r.fail(e, "", "a variable holds no NUL")
		}
		if passed[name] {
			r.fail(e, "keep one of the two", "also in `pass`: which value holds?")
		}
		out[name] = e.text()
	}
	return out
}

func (r *reader) audit(v *value) audit.Config {
	c := audit.Config{
		File:       v.get("file").text(),
		Durability: audit.Durability(v.get("durability").text()),
		Claims:     v.get("claims").texts(),
	}
	if c.File == "" {
		c.File = r.absolute("audit.jsonl")
	}
	return c
}

func watch(v *value) Watch {
	w := Watch{Rules: v.get("rules").text(), Baseline: v.get("baseline").text()}
	if hook := v.get("webhook"); hook.isSet {
		w.Webhook = &Webhook{URL: hook.get("url").raw, SecretFile: hook.get("secret_file").text()}
	}
	return w
}

func (r *reader) keys(v *value, asserting bool) keys.Config {
	c := keys.Config{
		Path:        v.get("path").text(),
		Algorithm:   v.get("algorithm").text(),
		RotateEvery: v.get("rotate_every").duration(),
		Overlap:     v.get("overlap").duration(),
		Publish:     v.get("publish").text(),
	}
	if c.Path == "" {
		c.Path = r.absolute("keys")
	}
	if c.Publish == "" && asserting {
		// The service verifies with it what it receives: without the file it could only trust.
		c.Publish = r.absolute("jwks/jwks.json")
	}
	return c
}

// walls checks that the profile gives the program nothing with which it could undo what the gate does, and closes to it
// what is the gate's alone wherever that lies. It can write nothing that the gate believes, and nothing that it can execute.
func (r *reader) walls(v *value, f *File) {
	alsoBelieved, alsoOurs := operated(f)
	ours := append(private(r.source.path, v, f), alsoOurs...)
	for _, p := range ours {
		f.Sandbox.Deny = append(f.Sandbox.Deny, p.path)
	}
	believed := append(slices.Clone(ours), alsoBelieved...)
	for _, issuer := range f.Ingress.Issuers {
		if issuer.Keys.File != "" {
			believed = append(believed, place{"the keys of issuer " + quote(issuer.Issuer), issuer.Keys.File})
		}
		if issuer.Keys.CAFile != "" {
			believed = append(believed, place{"the roots for the keys of issuer " + quote(issuer.Issuer), issuer.Keys.CAFile})
		}
		if in := issuer.Introspection; in != nil {
			for _, file := range []string{in.CAFile, in.CertFile} {
				if file != "" {
					believed = append(believed, place{"what introspection at issuer " + quote(issuer.Issuer) + " rests on", file})
				}
			}
		}
	}
	// Whoever can replace a socket receives what is sent there: tokens.
	sockets := []place{
		{"the gate's socket (ingress.listen)", f.Ingress.Listen}, {"the operator's socket (admin.listen)", f.Admin.Listen},
		{"the socket of the gate behind (egress.listen)", f.Egress.Listen},
	}
	for _, d := range f.Ingress.asked() {
		sockets = append(sockets, place{"the socket at which proxies ask (" + d.key + ")", d.address})
	}
	for _, socket := range sockets {
		if path, ok := strings.CutPrefix(socket.path, "unix:"); ok {
			believed = append(believed, place{socket.what, path})
		}
	}
	if f.Keys.Publish != "" {
		believed = append(believed, place{"the published keys (keys.publish)", f.Keys.Publish})
	}
	for _, h := range f.Ingress.Hops {
		if h.Keys.File != "" {
			believed = append(believed, place{"the keys of the gate " + quote(h.Issuer), h.Keys.File})
		}
	}
	if f.Ingress.KeepKeys != "" {
		believed = append(believed, place{"the issuers' kept keys (ingress.keep_keys)", f.Ingress.KeepKeys})
	}
	if f.State.CA != "" {
		believed = append(believed, place{"the roots of the state's servers (state.ca_file)", f.State.CA})
	}
	if t := f.Ingress.TLS; t != nil && t.ClientCA != "" {
		believed = append(believed, place{"ingress.tls.client_ca", t.ClientCA})
	}
	for _, d := range f.Egress.Rules.Destinations {
		if d.CA != "" {
			believed = append(believed, place{"the roots for destination " + quote(d.Name), d.CA})
		}
	}
	box := v.get("sandbox")
	for _, e := range box.get("write").entries {
		if e.ok {
			r.writable(e, e.text(), believed, f.Sandbox.Execute)
		}
	}
	listen := box.get("listen")
	if !listen.isSet {
		listen = v.get("ingress").get("upstream") // what it is derived from
	}
	for _, l := range f.Sandbox.Listen {
		if l.Unix != "" && listen.ok {
			r.writable(listen, filepath.Dir(l.Unix), believed, f.Sandbox.Execute)
		}
	}
	if publish := v.get("keys").get("publish"); f.Keys.Publish != "" && !publish.wrong() {
		folder := filepath.Dir(f.Keys.Publish)
		for _, p := range ours {
			if within(p.path, folder) || within(folder, p.path) {
				r.fail(publish, "give it a folder of its own, as `jwks/jwks.json`", "the program may read the folder %s, which also holds %s", quote(folder), p.what)
			}
		}
	}
}

// place is a file or folder, and what it is to us.
type place struct{ what, path string }

// private lists what the program behind the gate may neither read nor write.
func private(self string, v *value, f *File) []place {
	var ours []place
	if self != "" {
		ours = append(ours, place{"this file", self})
	}
	if !v.get("keys").get("path").wrong() {
		ours = append(ours, place{"the signing keys (keys.path)", f.Keys.Path})
	}
	if f.Audit.File != "-" && !v.get("audit").get("file").wrong() {
		ours = append(ours, place{"the audit log (audit.file)", f.Audit.File})
	}
	if s := v.get("state"); f.State.Path != "" && !s.get("path").wrong() {
		ours = append(ours, place{"the state (state.path)", f.State.Path})
	}
	if f.State.Credentials != "" {
		ours = append(ours, place{"the state's credentials (state.credentials_file)", f.State.Credentials})
	}
	if t := f.Ingress.TLS; t != nil && t.Key != "" {
		ours = append(ours, place{"the listener's key (ingress.tls.key)", t.Key})
	}
	watched := []place{{"the rules of the watch (watch.rules)", f.Watch.Rules}, {"what the watch has learned (watch.baseline)", f.Watch.Baseline}}
	if h := f.Watch.Webhook; h != nil {
		watched = append(watched, place{"the webhook's secret (watch.webhook.secret_file)", h.SecretFile})
	}
	for _, p := range watched {
		if p.path != "" {
			ours = append(ours, p)
		}
	}
	for _, issuer := range f.Ingress.Issuers {
		if in := issuer.Introspection; in != nil {
			for _, path := range []string{in.SecretFile, in.KeyFile, in.CertificateKey} {
				if path != "" {
					ours = append(ours, place{"what proves us to issuer " + quote(issuer.Issuer), path})
				}
			}
		}
	}
	for _, d := range f.Egress.Rules.Destinations {
		for _, path := range []string{d.Credential.Path, d.Credential.ClientSecretFile} {
			if path != "" {
				ours = append(ours, place{"the credential for destination " + quote(d.Name), path})
			}
		}
	}
	return ours
}

// writable checks a path that the program may write.
func (r *reader) writable(v *value, path string, believed []place, execute []string) {
	for _, p := range believed {
		if within(p.path, path) || within(path, p.path) {
			r.fail(v, "name a folder that holds nothing of sallyport's, or move what it holds", "the program could write %s", p.what)
		}
	}
	for _, x := range execute {
		if within(x, path) || within(path, x) {
			r.fail(v, "what can be written is never executed: move one of them", "the program could write %s of sandbox.execute", quote(x))
		}
	}
}

// within reports whether a clean absolute path is a folder or lies in it.
func within(p, folder string) bool {
	return p == folder || folder == "/" || strings.HasPrefix(p, folder+"/")
}
