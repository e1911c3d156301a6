package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion is what the build recorded about itself.
type buildVersion struct {
	Version  string `json:"version"`            // the module's version, or "devel"
	Revision string `json:"revision,omitempty"` // the commit
	Time     string `json:"time,omitempty"`     // of the commit, RFC 3339
	Modified bool   `json:"modified"`           // built from a changed tree
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion() buildVersion {
	v := buildVersion{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func newVersion(t *terminal) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Long: `Print the version that the build recorded: the module's version, the commit it
was built from and whether the tree was changed, the Go release, the platform.`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if f == "json" {
				return t.json(v)
			}
			fmt.Fprintf(t.out, "sallyport %s", v.Version)
			if v.Revision != "" {
				fmt.Fprintf(t.out, " (%.12s", v.Revision)
				if v.Modified {
					fmt.Fprint(t.out, ", changed")
				}
				fmt.Fprint(t.out, ")")
			}
			fmt.Fprintf(t.out, " %s %s\n", v.Go, v.Platform)
			return nil
		},
	}
	formatFlag(c, &f)
	return c
}
