package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/jws"
)

func newToken(t *terminal) *cobra.Command {
	return group("token", "Verify, decode and mint tokens",
		`Find out why a token is refused, see what it says, or make one for a test.

A token given as - is read from standard input, which keeps it out of the process
list and the shell's history.`,
		newTokenVerify(t), newTokenDecode(t), newTokenMint(t))
}

func newTokenDecode(t *terminal) *cobra.Command {
	c := &cobra.Command{
		Use:   "decode TOKEN|-",
		Short: "Print what a token says, verified or not",
		Long: `Print header and claims of a token as JSON. Nothing is verified: anybody can write
such a token. A token that the strict form refuses is still shown as far as it
can be read, with the reason on stderr and exit code 3.`,
		Example: `  sallyport token decode - < token.txt`,
		Args:    exactly("TOKEN or -"),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := t.readSecret(args[0])
			if err != nil {
				return err
			}
			_, strict := jws.Parse(raw)
			out := map[string]any{}
			for i, part := range strings.SplitN(raw, ".", 3) {
				if i == 2 {
					break
				}
				name := [...]string{"header", "claims"}[i]
				b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(part, "="))
				if err == nil && json.Valid(b) {
					out[name] = json.RawMessage(b)
				}
			}
			if len(out) == 0 {
				return &codeError{exitFindings, fmt.Errorf("decode the token: %w", strict)}
			}
			if err := t.json(out); err != nil {
				return err
			}
			if strict != nil {
				t.note("%s refused by the strict form: %v", paint(t.colourErr, yellow, "warning:"), strict)
				return exit(exitFindings)
			}
			t.note("not verified: sallyport token verify does that")
			return nil
		},
	}
	return c
}
