package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/state"
)

func newRevoke(t *terminal) *cobra.Command {
	var path, before, until string
	var list bool
	var f format
	var r state.Revocation
	c := &cobra.Command{
		Use:   "revoke [-c FILE] [--issuer URL] --jti ID | --sub NAME | --client ID | --sid ID | --kid ID | --digest HASH | --before TIME",
		Short: "End tokens before they expire",
		Long: `End tokens of one issuer, by what they claim, at every replica. A request with such a
token is refused from then on, and what it has open is ended within a second:
WebSockets, event streams, tunnels.

--jti and --digest end one token, --kid what a key has signed, --sub, --client and
--sid the tokens of a user, a client or a session, and --before alone all of the
issuer. It is an issuer of ingress.issuers, or one whose callers come by a hop. --before TIME ends those that were issued at that time or earlier; TIME may
lie ahead, and then nobody it concerns gets a new one accepted until then. Without
it a token or a key is ended for good, and users, clients, sessions and issuers as
of now: who logs in again has a good token.

The running sallyport is asked, by the unix socket of admin.listen. If none runs it
is written where it will be read (state), and so it is with many replicas (driver
nats). It is on record before it takes effect.

Where a token has no jti, the audit log has its digest (token_digest). It is kept
for as long as such a token may be valid (max_lifetime), what a key has signed for
ten years. Of a token without iat nobody knows when it was made: give --until its
exp if that is further ahead than max_lifetime.`,
		Example: `  sallyport revoke --jti 8b2c1f --reason "found in a log"
  sallyport revoke --sub alice --reason "laptop stolen"
  sallyport revoke --client mobile-app --before 2027-03-01T12:00:00Z
  sallyport revoke --issuer https://auth.example.com --kid 2027-02 --reason "key leaked"
  sallyport revoke --list --format json`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			file, err := readConfig(t, path)
			if err != nil {
				return err
			}
			if list {
				return listRevoked(c.Context(), t, file, f)
			}
			if r.Before, err = moment("before", before); err != nil {
				return err
			}
			if r.Until, err = moment("until", until); err != nil {
				return err
			}
			if err := whose(&r, file, before != ""); err != nil {
				return err
			}
			held, err := revokeAt(c.Context(), t, file, r)
			if err != nil {
				return err
			}
			if f == "json" {
				return t.json(held)
			}
			t.note("revoked: %s", describeRevocation(held))
			return nil
		},
	}
	configFlag(c, &path)
	formatFlag(c, &f)
	fs := c.Flags()
	fs.StringVar(&r.Issuer, "issuer", "", "the tokens' issuer (`URL`); not needed where the configuration has one only")
	fs.StringVar(&r.TokenID, "jti", "", "the token with this `ID`")
	fs.StringVar(&r.Digest, "digest", "", "the token with this `HASH` of its signing input, as records have it")
	fs.StringVar(&r.Subject, "sub", "", "the tokens of this subject (`NAME`)")
	fs.StringVar(&r.Client, "client", "", "the tokens of the client with this `ID`")
	fs.StringVar(&r.Session, "sid", "", "the tokens of the session with this `ID`")
	fs.StringVar(&r.KeyID, "kid", "", "what the issuer's key with this `ID` has signed")
	fs.StringVar(&before, "before", "", "those issued at this `TIME` or earlier: RFC 3339, or now")
	fs.StringVar(&until, "until", "", "keep this until `TIME`; without it, as long as such a token may be valid")
	fs.StringVar(&r.Reason, "reason", "", "`WHY`, for the record")
	fs.BoolVar(&list, "list", false, "print what is revoked now, newest first")
	return c
}

// moment reads a time of the command line; zero for none.
func moment(flag, s string) (time.Time, error) {
	switch s {
	case "":
		return time.Time{}, nil
	case "now":
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, &codeError{exitUsage, withHint(fmt.Errorf("--%s %q is no time", flag, s), "as in RFC 3339: %s", time.Now().UTC().Format(time.RFC3339))}
	}
	return at, nil
}

// whose finds the issuer, and refuses a revocation of everything that nobody has asked for.
func whose(r *state.Revocation, f *config.File, before bool) error {
	selectors := 0
	for _, s := range []string{r.TokenID, r.Digest, r.Subject, r.Client, r.Session, r.KeyID} {
		if s != "" {
			selectors++
		}
	}
	switch {
	case selectors > 1:
		return &codeError{exitUsage, withHint(errors.New("revoke: --jti, --digest, --sub, --client, --sid and --kid exclude each other"), "revoke one after the other")}
	case selectors == 0 && !before:
		return &codeError{exitUsage, withHint(errors.New("revoke: which tokens?"),
			"--jti, --digest, --sub, --client, --sid or --kid; all of the issuer's: --before now")}
	}
	var known []string
	for _, i := range f.Ingress.Issuers {
		known = append(known, i.Issuer)
	}
	for _, h := range f.Ingress.Hops { // whose callers are those of tokens that others verify
		known = append(known, h.Callers...)
	}
	slices.Sort(known)
	known = slices.Compact(known)
	switch {
	case slices.Contains(known, r.Issuer):
		return nil
	case r.Issuer == "" && len(known) == 1:
		r.Issuer = known[0]
		return nil
	case r.Issuer == "":
		return &codeError{exitUsage, withHint(errors.New("revoke: of which issuer?"), "--issuer %s", strings.Join(known, " or "))}
	}
	return &codeError{exitUsage, withHint(fmt.Errorf("revoke: %s is no issuer of %s", r.Issuer, f.Path), "byte for byte one of: %s", strings.Join(known, ", "))}
}

// revokeAt asks the running sallyport, or does it in its place.
func revokeAt(ctx context.Context, t *terminal, f *config.File, r state.Revocation) (state.Revocation, error) {
	var held state.Revocation
	err := ask(ctx, f, http.MethodPost, "/revocations", r, &held)
	if !errors.Is(err, errNotRunning) {
		return held, err
	}
	r.By = "admin"
	r = complete(r, f, time.Now())
	return r, withStore(ctx, t, f, func(log *audit.Log, store state.Store) error { return revoke(ctx, log, store, r) })
}

// clusterPatience is how long a command waits for the state's servers.
const clusterPatience = 15 * time.Second

// openBook opens the book of a file for a command that is no gate: it signs with the keys that are there.
func openBook(f *config.File, logger *slog.Logger) (*audit.Log, error) {
	book := f.Audit
	if r, err := keys.Open(f.Keys); err == nil {
		book.Sign = r.Signing
	}
	return audit.Open(book, logger)
}

// withStore opens the book and what is revoked, while no sallyport of the file answers.
func withStore(ctx context.Context, t *terminal, f *config.File, do func(*audit.Log, state.Store) error) (err error) {
	logger := t.logger(0)
	log, err := openBook(f, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	store, err := state.Open(f.State, logger, prometheus.NewRegistry())
	if err != nil {
		return withHint(err, "if sallyport runs, give it a unix socket to be asked at: admin.listen")
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	// A cluster is asked in the background, and takes nothing before it was heard.
	if err := waitReady(ctx, store, clusterPatience); err != nil {
		return fmt.Errorf("ask the state's servers: %w", err)
	}
	return do(log, store)
}

func listRevoked(ctx context.Context, t *terminal, f *config.File, as format) error {
	var held revocations
	err := ask(ctx, f, http.MethodGet, "/revocations", nil, &held)
	if errors.Is(err, errNotRunning) {
		err = withStore(ctx, t, f, func(_ *audit.Log, store state.Store) error {
			held.Revocations, held.Total = store.List(maxListed)
			return nil
		})
	}
	if err != nil {
		return err
	}
	if as == "json" {
		return t.json(held)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tISSUED BEFORE\tUNTIL\tBY\tREASON")
	for _, r := range held.Revocations {
		before := "ever"
		if !r.Before.IsZero() {
			before = r.Before.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", selector(r), before, r.Until.UTC().Format(time.RFC3339), r.By, r.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := held.Total - len(held.Revocations); more > 0 {
		t.note("and %d older ones", more)
	}
	return nil
}

// selector says in a few words which tokens a revocation ends.
func selector(r state.Revocation) string {
	for _, s := range []struct{ what, value string }{
		{"token", r.TokenID}, {"token with digest", r.Digest}, {"subject", r.Subject}, {"client", r.Client}, {"session", r.Session}, {"key", r.KeyID},
	} {
		if s.value != "" {
			return fmt.Sprintf("%s %q of %s", s.what, s.value, r.Issuer)
		}
	}
	return "all of " + r.Issuer
}

func describeRevocation(r state.Revocation) string {
	s := selector(r)
	if !r.Before.IsZero() {
		s += ", issued until " + r.Before.UTC().Format(time.RFC3339)
	}
	return s + ", kept until " + r.Until.UTC().Format(time.RFC3339)
}
