package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/keys"
)

func newKeys(t *terminal) *cobra.Command {
	return group("keys", "Make, rotate, list and publish our own signing keys",
		`The keys that sign what the service receives in place of the token (the
assertion) and the checkpoints of the audit log. They live in a folder, one file
each, readable by their owner only. "run" and "serve" make the first one by
themselves, rotate (keys.rotate_every) and withdraw (keys.overlap).`,
		newKeysGenerate(t), newKeysRotate(t), newKeysList(t), newKeysJWKS(t))
}

// keysFlags say which folder: --path, else the keys section of the file.
type keysFlags struct {
	config, path string
	named        func() bool // -c was given
}

func (k *keysFlags) add(c *cobra.Command) {
	configFlag(c, &k.config)
	c.Flags().StringVar(&k.path, "path", "", "the `FOLDER` of keys, instead of keys.path of the configuration")
	_ = c.MarkFlagDirname("path")
	k.named = func() bool { return c.Flags().Changed("config") }
}

func (k *keysFlags) section(t *terminal) (keys.Config, error) {
	if k.path != "" && k.named() {
		return keys.Config{}, usage("-c and --path exclude each other: one folder of keys at a time")
	}
	if k.path != "" {
		return keys.Config{Path: k.path}, nil
	}
	f, err := readConfig(t, k.config)
	if err != nil {
		return keys.Config{}, err
	}
	return f.Keys, nil
}

func (k *keysFlags) open(t *terminal) (*keys.Ring, error) {
	section, err := k.section(t)
	if err != nil {
		return nil, err
	}
	r, err := keys.Open(section)
	if err != nil {
		return nil, keysHint(err)
	}
	return r, nil
}

func newKeysGenerate(t *terminal) *cobra.Command {
	var k keysFlags
	var f format
	c := &cobra.Command{
		Use:   "generate [-c FILE | --path FOLDER]",
		Short: "Make a new Ed25519 signing key",
		Long: `Make a new Ed25519 key in the folder, and the folder if there is none. The file
is written whole or not at all, with mode 0600. The newest key signs; the ones
before it stay published until they retire.`,
		Example: `  sallyport keys generate --path keys
  sallyport keys generate -c sallyport.yaml --format json`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			section, err := k.section(t)
			if err != nil {
				return err
			}
			info, err := keys.Generate(section, time.Now())
			if err != nil {
				return err
			}
			if f == "json" {
				return t.json(info)
			}
			fmt.Fprintf(t.out, "%s\n", info.ID)
			t.note("made signing key %s in %s", info.ID, section.Path)
			return nil
		},
	}
	k.add(c)
	formatFlag(c, &f)
	return c
}

func newKeysRotate(t *terminal) *cobra.Command {
	var k keysFlags
	var f format
	var withdraw string
	c := &cobra.Command{
		Use:   "rotate [-c FILE | --path FOLDER] [--withdraw KID]",
		Short: "Make the next signing key now, ahead of time",
		Long: `Make the next key and publish it. It begins to sign a minute later, when every
service has read it; the one before it stays published until keys.overlap is over,
so that no request fails. "run" and "serve" do the same by themselves every
keys.rotate_every.

--withdraw KID ends a key at once, for one that has leaked: it is deleted, it leaves
the published set, and whatever it has signed is refused. If it was the one that
signed, the key before it does while that is published, else the new one at once,
and then services refuse what that signs until they have read the set again.

With -c the running sallyport is asked, by the unix socket of admin.listen; if none
answers, or with --path, the folder is changed, and whoever uses it follows within a
minute.`,
		Example: `  sallyport keys rotate -c sallyport.yaml
  sallyport keys rotate --withdraw "$(sallyport keys list --format json | jq -r '.[] | select(.signing).kid')"`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			made, err := k.rotate(c.Context(), t, withdraw)
			if err != nil {
				return err
			}
			if f == "json" {
				return t.json(made)
			}
			fmt.Fprintf(t.out, "%s\n", made.ID)
			if made.Signing {
				t.note("made signing key %s, which signs now", made.ID)
			} else {
				t.note("made signing key %s, which signs from %s", made.ID, made.Activates.UTC().Format(time.RFC3339))
			}
			return nil
		},
	}
	k.add(c)
	formatFlag(c, &f)
	c.Flags().StringVar(&withdraw, "withdraw", "", "end the key with this `KID` at once")
	return c
}

// rotate asks the running sallyport, or does it in its place.
func (k *keysFlags) rotate(ctx context.Context, t *terminal, withdraw string) (made keys.Info, err error) {
	if k.path == "" {
		f, err := readConfig(t, k.config)
		if err != nil {
			return made, err
		}
		if err := ask(ctx, f, http.MethodPost, "/keys/rotate", rotation{Withdraw: withdraw}, &made); !errors.Is(err, errNotRunning) {
			return made, err
		}
		log, err := openBook(f, t.logger(0))
		if err != nil {
			return made, err
		}
		r, err := k.open(t)
		if err == nil {
			made, err = rotateKeys(log, r, withdraw)
		}
		return made, errors.Join(err, log.Close())
	}
	// a folder by itself has no book
	r, err := k.open(t)
	if err != nil {
		return made, err
	}
	return rotateKeys(audit.New(io.Discard, audit.Config{}), r, withdraw)
}

func newKeysList(t *terminal) *cobra.Command {
	var k keysFlags
	var f format
	c := &cobra.Command{
		Use:   "list [-c FILE | --path FOLDER]",
		Short: "List the signing keys, newest first",
		Long: `List the keys of the folder: how old each is, what it is used for, when the next
rotation is due, and when each leaves the published set. "next" is published and
does not sign yet; "verifying" has a successor that signs.`,
		Example: `  sallyport keys list --path keys`,
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			r, err := k.open(t)
			if err != nil {
				return err
			}
			if f == "json" {
				return t.json(r.List())
			}
			now := time.Now()
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KID\tAGE\tUSE\tUNTIL\tCREATED")
			for _, i := range r.List() {
				until := i.Rotates
				if until.IsZero() {
					until = i.Retires
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.ID, age(now.Sub(i.Created)), i.Use(), until.UTC().Format(time.RFC3339), i.Created.UTC().Format(time.RFC3339))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if err := r.Overdue(now, late); err != nil {
				t.note("%s %v", paint(t.colourErr, yellow, "overdue:"), err)
			} else {
				t.note("next rotation in %s", age(r.List()[0].Rotates.Sub(now)))
			}
			return nil
		},
	}
	k.add(c)
	formatFlag(c, &f)
	return c
}

// age is a duration as people say it.
func age(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func newKeysJWKS(t *terminal) *cobra.Command {
	var k keysFlags
	c := &cobra.Command{
		Use:     "jwks [-c FILE | --path FOLDER]",
		Short:   "Print the public keys as a JWK set (RFC 7517)",
		Long:    `Print what a service needs to verify our assertions. It holds no private part.`,
		Example: `  sallyport keys jwks --path keys > sallyport.jwks.json`,
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			r, err := k.open(t)
			if err != nil {
				return err
			}
			fmt.Fprintf(t.out, "%s\n", r.JWKS())
			return nil
		},
	}
	k.add(c)
	return c
}

func keysHint(err error) error {
	return withHint(err, "sallyport keys generate makes the first key")
}
