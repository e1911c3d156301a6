package main

import (
	"fmt"
	"net/netip"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/sandbox"
)

func newDoctor(t *terminal) *cobra.Command {
	var path string
	var f format
	c := &cobra.Command{
		Use:   "doctor [-c FILE] [-- CMD [ARG...]]",
		Short: "Show what this kernel and container let the walls enforce, by trying it",
		Long: `Try each protection of the sandbox in a child process, on this kernel and in this
container, and print what was asked, what is in force and how it was tried. What
doctor says is denied was denied a moment ago. The last line is the network level
(sandbox.network) that holds.

With -c the profile is that of the file, else the default one. CMD is the program
that the profile is for; it is looked up, not started.

Exit code 3 when something asked for is not in force and not in
sandbox.accept_gaps.`,
		Example: `  sallyport doctor
  sallyport doctor -c sallyport.yaml -- node dist/main.js
  docker run --rm --entrypoint sallyport IMAGE doctor --format json`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return usage("doctor: unexpected argument %q; put -- before the program", args[0])
			}
			profile := sandbox.Profile{}
			if c.Flags().Changed("config") {
				file, err := readConfig(t, path)
				if err != nil {
					return err
				}
				proxy, _ := netip.ParseAddrPort(file.Egress.Listen) // not open here: its port will do
				if profile, err = profileFor(file, proxy); err != nil {
					return err
				}
			}
			cmd := sandbox.Command{Logger: t.logger(8)}
			if len(args) > 0 {
				cmd.Path, cmd.Args = args[0], args
			}
			plan, err := sandbox.Try(c.Context(), profile, cmd)
			if err != nil {
				return err
			}
			return printPlan(t, f, plan, profile.AcceptGaps)
		},
	}
	configFlag(c, &path)
	formatFlag(c, &f)
	return c
}

func printPlan(t *terminal, f format, plan sandbox.Plan, accepted []string) error {
	gaps := 0
	ok := map[string]bool{}
	for _, name := range accepted {
		ok[name] = true
	}
	for _, p := range plan.Protections {
		if p.Asked != "" && !p.InForce && !ok[p.Name] {
			gaps++
		}
	}
	if f == "json" {
		if err := t.json(map[string]any{"uid": os.Getuid(), "network": level(plan), "gaps": gaps, "protections": plan.Protections}); err != nil {
			return err
		}
		return findings(gaps)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROTECTION\tASKED\tIN FORCE\tHOW IT WAS TRIED")
	for _, p := range plan.Protections {
		state := "yes"
		switch {
		case p.InForce:
		case p.Asked == "":
			state = "not asked"
		case ok[p.Name]:
			state = "NO (accepted)"
		default:
			state = "NO"
		}
		how := p.How
		if p.Detail != "" {
			how += ": " + p.Detail
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Name, p.Asked, state, how)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nnetwork: %s asked, %s in force\n", plan.Asked, plan.Level)
	if gaps > 0 {
		t.note("%d protections that were asked for are not in force here: run refuses to start unless sandbox.accept_gaps names them", gaps)
	}
	return findings(gaps)
}

// level says which of the network levels (sandbox.network) was asked for and which holds: "broker", "ports", "none", or
// "open" where outgoing connections are not limited.
func level(p sandbox.Plan) map[string]string {
	return map[string]string{"asked": p.Asked, "in_force": p.Level}
}

func findings(n int) error {
	if n > 0 {
		return exit(exitFindings)
	}
	return nil
}
