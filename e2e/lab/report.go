package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// unexpected are the rows that went another way than the list says: what is not stopped, what was stopped elsewhere or
// for no reason that shows, and what does not succeed even against a bare service, so that stopping it proves nothing.
func unexpected(rows []row) error {
	var errs []error
	for _, r := range rows {
		bare, guarded := r.outcomes[0], r.outcomes[1]
		if !bare.succeeded {
			errs = append(errs, fmt.Errorf("%s: bare, it does not succeed: %s", r.name, bare.reason))
		}
		switch {
		case guarded.succeeded:
			errs = append(errs, fmt.Errorf("%s: guarded, it SUCCEEDS", r.name))
		case guarded.by != r.by:
			errs = append(errs, fmt.Errorf("%s: guarded, stopped by %q (%s), not by the %s", r.name, guarded.by, guarded.reason, r.by))
		}
		for i, o := range r.outcomes[2:] {
			if !o.succeeded && o.by == "" {
				errs = append(errs, fmt.Errorf("%s: %s, nothing shows what stopped it: %s", r.name, variants()[i+2].name, o.reason))
			}
		}
	}
	return errors.Join(errs...)
}

// alone are the attacks that succeed when the layer of a variant is off, and so are stopped by that layer, alone or with another.
func alone(rows []row, variant int) (names []string) {
	for _, r := range rows {
		if r.outcomes[variant].succeeded && !r.outcomes[1].succeeded {
			names = append(names, r.name)
		}
	}
	return names
}

func (o outcome) String() string {
	switch {
	case o.succeeded:
		return "SUCCEEDED"
	case o.by == "":
		return "failed: " + o.reason
	}
	return string(o.by) + ": " + o.reason
}

// short is the outcome in one word.
func (o outcome) short() string {
	switch {
	case o.succeeded:
		return "SUCCEEDS"
	case o.by == "":
		return "fails"
	}
	return string(o.by)
}

func writeText(rows []row) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ATTACK\tBARE\tGUARDED\tSTOPPED BY\tREASON\tRECORD")
	for _, r := range rows {
		bare, guarded := r.outcomes[0], r.outcomes[1]
		verdict := "stopped"
		if guarded.succeeded {
			verdict = "SUCCEEDS"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, strings.ToLower(bare.short()), verdict, guarded.by, guarded.reason, guarded.record)
	}
	_ = w.Flush()
	fmt.Fprint(&b, "\nWith one layer off:\n\n")
	fmt.Fprint(w, "ATTACK")
	for _, v := range variants()[2:] {
		fmt.Fprintf(w, "\t%s", strings.ToUpper(v.name))
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		fmt.Fprint(w, r.name)
		for _, o := range r.outcomes[2:] {
			fmt.Fprintf(w, "\t%s", o.short())
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	return b.Bytes()
}

// writeJSON writes one object. Members may be added.
func writeJSON(rows []row) ([]byte, error) {
	type result struct {
		Succeeded bool   `json:"succeeded"`
		StoppedBy layer  `json:"stopped_by,omitempty"`
		Reason    string `json:"reason,omitempty"`
		Record    string `json:"record,omitempty"`
	}
	all := make([]map[string]any, 0, len(rows))
	for _, r := range rows {
		one := map[string]any{"name": r.name, "sent": r.what, "proof": r.proof.text}
		for i, v := range variants() {
			o := r.outcomes[i]
			one[v.key] = result{o.succeeded, o.by, o.reason, o.record}
		}
		all = append(all, one)
	}
	layers := map[string]any{}
	for i, l := range []layer{gate, walls, behind} {
		layers[string(l)] = slices.Concat([]string{}, alone(rows, i+2))
	}
	b, err := json.MarshalIndent(map[string]any{"attacks": all, "stopped_by_this_layer_alone": layers}, "", "  ")
	return append(b, '\n'), err
}

func writePage(rows []row) []byte {
	var b bytes.Buffer
	stopped := 0
	for _, r := range rows {
		if !r.outcomes[1].succeeded {
			stopped++
		}
	}
	fmt.Fprintf(&b, pageHead, len(rows), stopped)
	for _, v := range variants() {
		fmt.Fprintf(&b, "- **%s**: %s.\n", v.name, v.what)
	}
	fmt.Fprint(&b, pageProofs, "\n## Bare and guarded\n\n| attack | what is sent | bare: it succeeds, for | guarded: stopped by | reason | in the audit log |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		bare, guarded := r.proof.text, r.outcomes[1]
		if !r.outcomes[0].succeeded {
			bare = "**it fails**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | `%s` | %s |\n", r.name, r.what, bare, strings.ReplaceAll(guarded.short(), "SUCCEEDS", "**nothing**"), guarded.reason, guarded.record)
	}
	fmt.Fprint(&b, pageMatrix)
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s |", r.name)
		for _, o := range r.outcomes[2:] {
			cell := o.String()
			if o.succeeded {
				cell = "**succeeds**"
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		fmt.Fprintln(&b)
	}
	for i, l := range []layer{gate, walls, behind} {
		names := alone(rows, i+2)
		fmt.Fprintf(&b, "\nNot without the %s, %d of %d: %s.\n", l, len(names), len(rows), strings.Join(names, "; "))
	}
	return b.Bytes()
}

const pageHead = `# The escape lab

<!-- Made by the lab: scripts/with-engine go test ./e2e/lab -update -->

A NestJS service that is vulnerable on purpose ([e2e/lab/app](../e2e/lab/app), which must run nowhere else) stands in a real Docker
container as root, with Docker's default profile and no capability added. Within its reach is what attackers hope for: the engine's
socket mounted, a folder of the host mounted writable, the engine's API on TCP in a neighbour container, and a stand-in for the metadata
service at 169.254.169.254 and fd00:ec2::254. Another service, billing, trusts it: bare, or behind a sallyport of its own
([e2e/lab/billing.yaml](../e2e/lab/billing.yaml)). The engine is a real one; %d attacks are tried on the bare service, where each succeeds, and on the
same container behind sallyport, where %d are stopped. ` + "`make lab`" + ` runs it, ` + "`make lab FORMAT=json`" + ` prints it for machines, and ` + "`make test`" + ` holds
this page to what really happened. What the operator wrote is [e2e/lab/sallyport.yaml](../e2e/lab/sallyport.yaml).

The same image, mounts and network stand in five variants:

`

const pageProofs = `
How success is proven: with values that are new in each run and stand only where the attack must get to, and with files on the host. An
attack that reaches the engine has it make a container that mounts a folder of the host, and the file that this container
wrote must be there and belong to root. Who stopped an attack is read from the audit log and from the error that the attacker met, not from a list.

- Attacks by HTTP carry a good token of the least privilege (unless the token is the attack), so what stops them is not that nobody was logged in.
- *From inside* means with full control of the service's process: JavaScript by the route that evaluates an expression, and native code by a shared object
  that is uploaded and loaded, which needs no execve.
- The host's real core_pattern and release_agent are never touched, and in a default container they are mounted read-only. The rows stand for a container into which
  the host's ` + "`/proc` or `/sys`" + ` was mounted writable: the files are stand-ins in the folder of the host. What is proven is that they can be written, and
  then that they cannot.
- Engines since Docker 25 refuse io_uring to every container. There the row runs in a container without the engine's filter
  (which is what Kubernetes gives unless asked), bare and guarded alike.
- Whoever is attacked is somebody else: a clerk, who may write invoices. That he can, through both gates, is tried before any attack. *At billing* means the gate
  of billing's sallyport, whose log is read, too.
- *Token revoked* means that the watch has ended the token that the attack was sent with, which is waited for. Where other requests are in flight or were
  just over, and nothing says which one it was, nobody is blamed; so the attacks that show it come first or last, when nothing else is, or the capability says it.
- The attack after a minute waits for real: it is begun before all others and ended after them.
- What stands where the supervisor stands in the bare container is a small init that keeps a secret of its own.
`

const pageMatrix = `
## With one layer off

What each layer still stops when another is taken away. An attack that succeeds here is stopped by the missing layer alone, or by it together with another
(the gate knows the tokens that the gate behind looks for; the gate behind sees the attempt that the gate ends a token for); one that does not met a second layer. Without the walls the gate behind is reached by the proxy variables only, so whatever does not honour them goes past it; and the
service listens on every address again, so whoever can connect to it there goes past the gate, too. Without the gate behind its name server
stays, which gives whoever asks for a name within a few seconds the same answer.

| attack | without the gate | without the walls | without the gate behind |
|---|---|---|---|
`
