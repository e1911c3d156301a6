package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/keys"
)

func newKeys(t *terminal) *cobra.Command {
	return group("keys", "Make, list and publish our own signing keys",
		`The keys that sign what the service receives in place of the token (the
assertion). They live in a folder, one file each, readable by their owner only.
"run" and "serve" make the first one by themselves, rotate (keys.rotate_every)
and withdraw (keys.overlap).`,
		newKeysGenerate(t), newKeysList(t), newKeysJWKS(t))
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

func newKeysList(t *terminal) *cobra.Command {
	var k keysFlags
	var f format
	c := &cobra.Command{
		Use:     "list [-c FILE | --path FOLDER]",
		Short:   "List the signing keys, newest first",
		Long:    `List the keys of the folder: which signs now, and when each leaves the published set.`,
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
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KID\tCREATED\tSIGNS\tRETIRES")
			for _, i := range r.List() {
				signs, retires := "", ""
				switch {
				case i.Signing:
					signs = "now"
				case i.Activates.After(time.Now()):
					signs = "from " + i.Activates.UTC().Format(time.RFC3339)
				}
				if !i.Retires.IsZero() {
					retires = i.Retires.UTC().Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", i.ID, i.Created.UTC().Format(time.RFC3339), signs, retires)
			}
			return w.Flush()
		},
	}
	k.add(c)
	formatFlag(c, &f)
	return c
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
