package config

func describeSandbox() key {
	folder := &key{kind: path, example: "/app"}
	return key{name: "sandbox", kind: section, example: "{preset: node, read: [/app], write: [/tmp]}",
		doc: "The walls around the program that `run` starts. What the kernel cannot enforce refuses to start, unless `accept_gaps` names it.", unset: "the program gets itself and its libraries, and nothing else",
		keys: []key{
			{name: "preset", kind: text, enum: []string{"node"}, example: "node",
				doc:   "Adds what such a program needs, found on this machine: `node` the program, its libraries and the application's folder.",
				unset: "only what is written here is added to the program itself"},
			{name: "user", kind: text, number: true, example: "10001:10001", pattern: `^[0-9]{1,10}(:[0-9]{1,10})?$`, shape: "UID or UID:GID, in numbers", check: user,
				doc: "The user and group to become when started as root: `UID:GID` or `UID`. Root itself is an error, unless `accept_gaps` holds `user`.", def: "65532:65532",
				unset: "65532:65532 when started as root, else whoever started it"},
			{name: "read", kind: sequence, example: "[/app]", doc: "Files and folders the program may read, and not execute. The signing keys, the audit log, the state, the listener's private key and this file stay closed wherever they lie.", unset: "nothing beyond the preset", item: folder},
			{name: "write", kind: sequence, example: "[/tmp]", doc: "Files and folders it may read and write. What can be written can never be executed, so no entry may lie in or above one of `execute`; nor may it reach what the gate believes: this file, keys, the log.",
				unset: "it may write nowhere", item: folder},
			{name: "execute", kind: sequence, example: "[/app/bin]", doc: "Files and folders it may read and execute.", unset: "nothing beyond the program and the preset", item: folder},
			{name: "listen", kind: sequence, least: 1, example: "[3000]",
				doc:   "Where it may listen: TCP ports, on loopback only, or paths of unix sockets, whose folders it may then write in. It must hold the place of `ingress.upstream`.",
				unset: "the one place that `ingress.upstream` names; nowhere when that is on another machine",
				item: &key{kind: choice, example: "3000", alts: []key{
					{kind: integer, min: 1, max: 65535, example: "3000"},
					{kind: path, example: "/run/app/app.sock"},
				}}},
			{name: "network", kind: text, enum: []string{"broker", "ports", "none"}, def: "broker", example: "none",
				doc: "What it may do with sockets, besides listening where `listen` says. `broker`: each connection is made for it by us, to what `egress.destinations` names, whatever the program knows of proxies. " +
					"`ports`: it connects to the port of `egress.listen`, at whatever address, and to nothing else, so it must know proxies; for kernels without seccomp notification. `none`: it has no internet socket at all, so the upstream must be a unix socket.",
				unset: "`broker`"},
			{name: "sockets", kind: sequence, example: "[/run/postgresql/.s.PGSQL.5432]",
				doc: "Unix sockets it may connect to. Links are followed; it is the real path that is judged. Those of container runtimes are refused, unless `egress.unlock` names them.", unset: "it connects to no unix socket that has a path",
				item: &key{kind: path, example: "/run/postgresql/.s.PGSQL.5432"}},
			{name: "udp", kind: text, enum: []string{"none", "dns"}, def: "none", example: "dns",
				doc: "`dns`: port 53 leads to our name server over UDP too, for programs that ask no other way (Go, musl); nothing else does. With `network: broker`.", unset: "`none`: names are looked up over TCP, for which `RES_OPTIONS=use-vc` is set"},
			{name: "preload", kind: text, enum: []string{"node", "none"}, example: "none",
				doc:   "`node`: Node loads a file of ours first (NODE_OPTIONS), by which each request out names the request that caused it; it finds our forward proxy in SALLYPORT_PROXY. What `env.set` says of NODE_OPTIONS holds besides. See doc/node.md.",
				unset: "`node` where the program is `node` or the preset is, and its connections pass here; else `none`"},
			{name: "env", kind: section, example: "{pass: [NODE_ENV]}", doc: "The program's environment beyond PATH, HOME (`/` where root was given up), LANG and TZ.", unset: "it has no other variable", keys: []key{
				{name: "pass", kind: sequence, example: "[NODE_ENV]", doc: "Variables it inherits: the way for a secret that must be in the environment. Those by which code enters a program (LD_*, NODE_OPTIONS and the like) are refused when it starts.", unset: "none is inherited",
					item: variableName()},
				{name: "set", kind: table, example: `{PORT: "3000"}`, doc: "Variables set here. A value that looks like a secret is an error: pass it, or name a file that holds it.", unset: "none is set",
					names: variableName(), item: &key{kind: text, example: `"3000"`}},
			}},
			{name: "limits", kind: section, example: "{nofile: 1024}", doc: "Its resource limits (setrlimit(2)). It never leaves a core file.", unset: "each has its default", keys: []key{
				{name: "nofile", kind: integer, min: 16, max: 1 << 20, def: "4096", example: "1024", doc: "Open files.", unset: "4096"},
				{name: "nproc", kind: integer, min: 1, max: 1 << 22, def: "4096", example: "256", doc: "Processes and threads of its user, in all containers that run as the same uid.", unset: "4096"},
			}},
			{name: "accept_gaps", kind: sequence, example: "[abstract-sockets]", doc: "Protections, as `sallyport doctor` names them, that may be missing here.", unset: "a missing protection refuses to start",
				item: &key{kind: text, pattern: `^[a-z0-9_.-]+$`, shape: "a protection's name", example: "abstract-sockets"}},
			{name: "dir", kind: path, example: "/app", doc: "The program's working directory.", unset: "ours"},
		}}
}

func variableName() *key {
	return &key{kind: text, pattern: `^[A-Za-z_][A-Za-z0-9_]*$`, shape: "a variable's name", example: "NODE_ENV"}
}

func describeAudit() key {
	return key{name: "audit", kind: section, example: "{file: audit.jsonl}", doc: "The book: every decision is recorded before it takes effect. What cannot be recorded is refused.",
		unset: "records go to `audit.jsonl` beside this file", keys: []key{
			{name: "file", kind: path, dash: true, def: "audit.jsonl", example: "/var/log/sallyport/audit.jsonl", doc: "The file, one JSON object a line; `-` is standard output.",
				unset: "`audit.jsonl` beside this file"},
			{name: "durability", kind: text, enum: []string{"buffered", "written", "synced"}, def: "written", example: "synced",
				doc:   "When a record counts as made: in our memory and within 100 ms in the kernel (`buffered`), in the kernel (`written`), on the device (`synced`).",
				unset: "`written`"},
			{name: "claims", kind: sequence, example: "[tenant]", doc: "Claims recorded beside issuer, subject, client and token id. They may be personal data.", unset: "no other claim is recorded",
				item: &key{kind: text, check: notBlank}},
		}}
}

func describeKeys() key {
	return key{name: "keys", kind: section, example: "{path: /var/lib/sallyport/keys}", doc: "Our own signing keys, for the assertion and the checkpoints of the audit log.", unset: "they are kept in `keys` beside this file",
		keys: []key{
			{name: "path", kind: path, def: "keys", example: "/var/lib/sallyport/keys", doc: "Their folder. The program behind the gate may neither read nor write it.", unset: "`keys` beside this file"},
			{name: "algorithm", kind: text, enum: []string{"EdDSA"}, def: "EdDSA", example: "EdDSA", doc: "The signature algorithm.", unset: "`EdDSA`"},
			{name: "rotate_every", kind: duration, min: 10 * minute, max: 8760 * hour, def: "720h", example: "168h", doc: "The age at which a new key is made.", unset: "720 h, thirty days"},
			{name: "overlap", kind: duration, min: 2 * minute, max: 8760 * hour, def: "168h", example: "24h", doc: "How long the old one stays published after that.", unset: "168 h, seven days"},
			{name: "publish", kind: path, example: "jwks/jwks.json",
				doc:   "A file that holds the public keys for the service to read, written whenever they change. Its folder becomes readable to the program, and so holds nothing else.",
				unset: "`jwks/jwks.json` beside this file where there is an `ingress.assertion`, else none"},
		}}
}

func describeAdmin() key {
	return key{name: "admin", kind: section, example: "{listen: \"unix:admin.sock\"}", doc: "The listener for operators: health, readiness, metrics, public keys, reload. Never on the listener for callers.",
		unset: "there is none", keys: []key{
			{name: "listen", kind: address, required: true, example: `"unix:admin.sock"`, pattern: `^(unix:.+|(127\.[0-9.]+|\[::1\]|localhost):[0-9]{1,5})$`,
				shape: "unix:PATH or a loopback address and port", doc: "`unix:PATH`, or `127.0.0.1:PORT`. Any other address is an error: whoever reaches it can reload and read metrics."},
		}}
}
