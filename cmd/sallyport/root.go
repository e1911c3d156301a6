package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

const about = `sallyport ends the path from a bearer token to the host.

It stands around a service in its container: nothing reaches the service without
a verified token that the route allows, nothing leaves it but to destinations that
are written down, it cannot leave its corner by file, system call or socket, and
every decision is recorded before it takes effect.

    ENTRYPOINT ["sallyport", "run", "--", "node", "dist/main.js"]

Exit codes: 0 fine, 1 failure, 2 wrong usage, 3 findings (an invalid token, a
denied request, a missing protection). run returns its child's code.`

func newRoot(t *terminal) *cobra.Command {
	root := &cobra.Command{
		Use:                        "sallyport",
		Short:                      "A bearer token should open a route, never the host",
		Long:                       about,
		SilenceErrors:              true,
		SilenceUsage:               true,
		DisableAutoGenTag:          true,
		Args:                       subcommands,
		RunE:                       func(c *cobra.Command, _ []string) error { return c.Help() },
		SuggestionsMinimumDistance: 2,
	}
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &codeError{exitUsage, withHint(err, "%s --help shows the flags and examples", c.CommandPath())}
	})
	root.AddCommand(
		newRun(t), newServe(t), newCheck(t), newDoctor(t),
		newToken(t), newKeys(t), newRevoke(t), newAudit(t), newVersion(t),
	)
	root.InitDefaultCompletionCmd()
	return root
}

// subcommands refuses a word that names no command, with the nearest one.
func subcommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return &codeError{exitUsage, withHint(err, "did you mean %s?", strings.Join(near, " or "))}
	}
	return &codeError{exitUsage, withHint(err, "%s --help lists the commands", c.CommandPath())}
}

// exactly wants n arguments, named as in the usage line.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		what := "no argument"
		if len(names) > 0 {
			what = strings.Join(names, " ")
		}
		return &codeError{exitUsage, withHint(fmt.Errorf("%s takes %s, got %d arguments", c.CommandPath(), what, len(args)),
			"%s --help shows examples", c.CommandPath())}
	}
}

// group is a command that only holds others.
func group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: subcommands,
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return &codeError{exitUsage, errors.New("which one?")}
		}}
	c.AddCommand(children...)
	return c
}

// configFlag is -c, the same for every command that reads the file.
func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVarP(path, "config", "c", "sallyport.yaml", "the configuration `FILE`")
	_ = c.MarkFlagFilename("config", "yaml", "yml")
}

// formatFlag is --format, the same for every command that prints facts.
func formatFlag(c *cobra.Command, f *format) {
	*f = "text"
	c.Flags().Var(f, "format", "`FORMAT` of the output: text or json")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

type format string

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	if s != "text" && s != "json" {
		return fmt.Errorf("%q is not text or json", s)
	}
	*f = format(s)
	return nil
}

// logLevelFlag is --log-level, for the commands that stay up.
func logLevelFlag(c *cobra.Command, l *slog.Level) {
	c.Flags().TextVar(l, "log-level", slog.LevelInfo, "least `LEVEL` that is logged: debug, info, warn or error")
	_ = c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
}
