package main

import (
	"math"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/story"
)

func newAuditQuery(t *terminal) *cobra.Command {
	var l logFlags
	var f format
	var filter filterFlags
	var last int
	c := &cobra.Command{
		Use:   "query [-c FILE] [--token JTI | --request ID | ...] [--since T] [--until T] [--last N] [FILE...]",
		Short: "Tell the story of a token, a request or a caller",
		Long: `Find the decisions that fit all the flags, and print them as a timeline: each request
with the connections that it caused and how they ended, what was denied and why,
alarms and revocations. Whatever caused something that fits is shown above it.

Without FILE the log is audit.file of the configuration. Give all the files of a
rotated log that may hold the story; they may be compressed, and in any order.

--format json prints one object a line: file, line, under (the request that caused
it), and record, the line of the log as it is.

Query believes the log: "sallyport audit verify" says whether you may.`,
		Example: `  sallyport audit query --token 7f3a91                    the whole life of a token
  sallyport audit query --request 01a21391a49de963        one request, from top to bottom
  sallyport audit query --decision deny --since 1h        what was refused in the last hour
  sallyport audit query --subject alice --format json audit.jsonl* | jq .record.code`,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := filter.check(); err != nil {
				return err
			}
			if last < 0 {
				return usage("--last %d: a number of decisions, or 0 for all", last)
			}
			if last == 0 {
				last = math.MaxInt / 4
			}
			files, err := l.files(t, args)
			if err != nil {
				return err
			}
			found, err := story.Read(scan(files), filter.Filter, last)
			if err != nil {
				return err
			}
			if f == "json" {
				err = story.JSON(t.out, found.Events)
			} else {
				err = (&story.Printer{W: t.out, Colour: t.colour}).Story(found.Events)
			}
			if err != nil {
				return err
			}
			if found.Left > 0 {
				t.note("%d earlier decisions fit too: --last 0 shows all, --since and --until a part", found.Left)
			}
			if found.Passed > 0 {
				t.note("%d lines do not parse and were passed over: sallyport audit verify says why", found.Passed)
			}
			if len(found.Events) == 0 {
				t.note("nothing fits")
				if !filter.all() && len(args) < 2 {
					t.note("  hint: give the rotated files too, if it was earlier")
				}
			}
			return nil
		},
	}
	l.add(c)
	filter.add(c)
	c.Flags().Var(&filter.since, "since", "not before this `TIME`: 2027-03-01T12:00:00Z, 2027-03-01, or how long ago: 90m")
	c.Flags().Var(&filter.until, "until", "before this `TIME`")
	c.Flags().IntVar(&last, "last", 1000, "show the last `N` decisions that fit; 0 shows all")
	formatFlag(c, &f)
	return c
}
