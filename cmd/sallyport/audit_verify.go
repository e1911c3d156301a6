package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/story"
)

func newAuditVerify(t *terminal) *cobra.Command {
	var l logFlags
	var f format
	var v auditVerify
	c := &cobra.Command{
		Use:   "verify [-c FILE] [--jwks FILE]... [--head HASH]... [--whole] [FILE...]",
		Short: "Say whether the audit log is as it was written, and if not, where",
		Long: `Read the log and find the first line that was altered, removed, repeated or moved:
each line holds the hash of all that its writer wrote before it, and checkpoints
sign that. Without FILE the log is audit.file of the configuration. Give all the
files of a rotated log; they may be compressed, and in any order.

Signatures are verified by the keys of -c (keys), of --jwks, or of both; with
neither, whoever could write the file could have made all hashes anew, and verify
says so. A key that has retired is no longer published: keep the output of
"sallyport keys jwks" with the logs that you archive.

That lines are missing at the very end of a log, the files cannot say. Keep the
head that verify prints, or that sallyport logs when it closes the log, and give it
to --head. --whole says that the files are all there ever was: then no chain may
have begun before them.

Exit code 0 when nothing is wrong, 3 when something is.`,
		Example: `  sallyport audit verify -c sallyport.yaml
  sallyport audit verify --jwks sallyport.jwks.json audit.jsonl*
  sallyport audit verify --head XRP6LJDz5hKsFwtCAFYV2ynP5Y569T3wKPciquKWJoU audit.jsonl`,
		RunE: func(_ *cobra.Command, args []string) error {
			files, err := l.files(t, args)
			if err != nil {
				return err
			}
			lookup, err := v.keys(t, &l, len(args) == 0)
			if err != nil {
				return err
			}
			heads := map[string]bool{}
			for _, h := range v.heads {
				if sum, err := base64.RawURLEncoding.Strict().DecodeString(h); err != nil || len(sum) != 32 {
					return usage("--head %s is no hash of a line: 43 characters of base64url", h)
				}
				heads[h] = false
			}
			return runVerify(t, f, files, &story.Verifier{Keys: lookup, Heads: heads, Whole: v.whole})
		},
	}
	l.add(c)
	c.Flags().StringArrayVar(&v.jwks, "jwks", nil, "the public keys that sign: a JWK set `FILE`; repeat for several")
	c.Flags().StringArrayVar(&v.heads, "head", nil, "a line's `HASH` that you have kept: it must be in the log; repeat for several")
	c.Flags().BoolVar(&v.whole, "whole", false, "the files are the whole log: no chain began before them")
	_ = c.MarkFlagFilename("jwks", "json")
	_ = c.RegisterFlagCompletionFunc("head", cobra.NoFileCompletions)
	formatFlag(c, &f)
	return c
}

type auditVerify struct {
	jwks, heads []string
	whole       bool
}

type keyLookup = func(kid string) (ed25519.PublicKey, bool)

// keys are those of all sets that are given; nil if none is.
func (v *auditVerify) keys(t *terminal, l *logFlags, fromConfig bool) (keyLookup, error) {
	var sets []keyLookup
	for _, path := range v.jwks {
		set, err := identity.KeysFile(path)
		if err != nil {
			return nil, withHint(err, "sallyport keys jwks prints the set")
		}
		sets = append(sets, set)
	}
	if l.named() || fromConfig {
		f, err := readConfig(t, l.config)
		if err != nil {
			return nil, err
		}
		set, err := configuredKeys(f)
		if err != nil && len(sets) == 0 {
			return nil, withHint(err, "--jwks FILE names the public keys where the private ones cannot be read: sallyport keys jwks prints them")
		}
		if err == nil {
			sets = append(sets, set)
		}
	}
	if len(sets) == 0 {
		return nil, nil
	}
	return func(kid string) (ed25519.PublicKey, bool) {
		for _, set := range sets {
			if key, ok := set(kid); ok {
				return key, true
			}
		}
		return nil, false
	}, nil
}

// configuredKeys reads the published set, else the folder. It writes neither.
func configuredKeys(f *config.File) (keyLookup, error) {
	if f.Keys.Publish != "" {
		if set, err := identity.KeysFile(f.Keys.Publish); err == nil {
			return set, nil
		}
	}
	c := f.Keys
	c.Publish = ""
	r, err := keys.Open(c)
	if err != nil {
		return nil, fmt.Errorf("verify the checkpoints: %w", err)
	}
	var set struct {
		Keys []struct{ Kid, X string }
	}
	if err := json.Unmarshal(r.JWKS(), &set); err != nil {
		return nil, fmt.Errorf("verify the checkpoints: %w", err)
	}
	public := map[string]ed25519.PublicKey{}
	for _, k := range set.Keys {
		if public[k.Kid], err = base64.RawURLEncoding.DecodeString(k.X); err != nil {
			return nil, fmt.Errorf("verify the checkpoints: %w", err)
		}
	}
	return func(kid string) (ed25519.PublicKey, bool) { k, ok := public[kid]; return k, ok }, nil
}

// verification of a log as it is printed.
type auditVerdict struct {
	Intact  bool           `json:"intact"`
	Signed  bool           `json:"signatures_verified"` // keys were given
	Finding *story.Finding `json:"finding,omitempty"`
	story.Report
	Covered uint64 `json:"covered"` // lines that signatures vouch for
}

func runVerify(t *terminal, f format, files []logFile, v *story.Verifier) error {
	begun := time.Now()
	err := verifyFiles(t, files, v)
	found, isFinding := errors.AsType[*story.Finding](err)
	if err != nil && !isFinding {
		return err
	}
	out := auditVerdict{Intact: found == nil, Signed: v.Keys != nil, Finding: found, Report: v.Report()}
	for _, c := range out.Chains {
		if c.Signed > 0 {
			out.Covered += c.Signed - c.First + 1
		}
	}
	if f == "json" {
		if err := t.json(out); err != nil {
			return err
		}
	} else {
		printVerification(t, out)
	}
	t.note("%d lines, %.1f MB/s", out.Lines, float64(out.Bytes)/1e6/max(time.Since(begun).Seconds(), 1e-6))
	if found != nil {
		return exit(exitFindings)
	}
	return nil
}

func verifyFiles(t *terminal, files []logFile, v *story.Verifier) error {
	var total int64
	for _, f := range files {
		total += f.size
	}
	bar := newProgress(t, total)
	defer bar.end()
	for _, f := range files {
		r, err := f.open(bar.add)
		if err != nil {
			return err
		}
		err = v.File(f.path, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return v.End()
}

func printVerification(t *terminal, v auditVerdict) {
	if f := v.Finding; f != nil {
		fmt.Fprintf(t.out, "%s %s:%d: %s\n  %s\n", paint(t.colour, red, string(f.Code)), f.File, f.Line, what(f.Code), f.Detail)
	} else {
		fmt.Fprintf(t.out, "%s: every line is as it was written, as far as its chain goes\n", paint(t.colour, green, "intact"))
	}
	for _, c := range v.Chains {
		fmt.Fprintf(t.out, "chain %s: lines %d to %d", c.ID, c.First, c.Last)
		if c.First > 1 {
			fmt.Fprint(t.out, " (it began in a file that was not given)")
		}
		switch {
		case !v.Signed:
			fmt.Fprint(t.out, ", signatures not verified")
		case c.Signed == 0:
			fmt.Fprint(t.out, ", none signed")
		case c.Signed == c.Last:
			fmt.Fprint(t.out, ", all signed")
		default:
			fmt.Fprintf(t.out, ", signed to line %d (%s); nothing vouches for the %d after it", c.Signed, c.Until, c.Last-c.Signed)
		}
		if !c.Ended {
			fmt.Fprint(t.out, "; no end: it is being written, was killed, or its last lines are gone")
		}
		fmt.Fprintf(t.out, "\n  head %s\n", c.Head)
	}
	var notes []string
	if v.Torn > 0 {
		notes = append(notes, fmt.Sprintf("%d lines were cut short and are no records", v.Torn))
	}
	if v.Unchained > 0 {
		notes = append(notes, fmt.Sprintf("%d lines are from before there were chains: anybody may have written them", v.Unchained))
	}
	if !v.Signed {
		notes = append(notes, "signatures were not verified: without keys (--jwks or -c) hashes show a slip, not a forger")
	}
	for _, n := range notes {
		fmt.Fprintf(t.out, "%s %s\n", paint(t.colour, yellow, "note:"), n)
	}
}

// what says a code for a person.
func what(c story.Code) string {
	switch c {
	case story.Altered:
		return "this line is not what was written"
	case story.Missing, story.Beheaded:
		return "lines are missing before this one"
	case story.Repeated:
		return "this line stands where it does not belong"
	case story.Continued:
		return "this line comes after the end of its chain"
	case story.Unchained:
		return "this line is in no chain"
	case story.NoCheckpoint:
		return "there is no checkpoint where one is due"
	case story.Unsigned, story.UnknownKey, story.BadSignature:
		return "nobody whose key is known vouches for this"
	case story.Unseen:
		return "lines of another chain are missing before this one"
	case story.HeadMissing:
		return "the log ends before a line that you have kept the hash of"
	}
	return string(c)
}

// progress is a bar on the terminal of a person who waits.
type progress struct {
	t           *terminal
	total, done int64
	begun, next time.Time
	shown       bool
}

func newProgress(t *terminal, total int64) *progress {
	now := time.Now()
	return &progress{t: t, total: total, begun: now, next: now.Add(500 * time.Millisecond)}
}

func (p *progress) add(n int) {
	p.done += int64(n)
	now := time.Now()
	if !p.t.interactive() || now.Before(p.next) || p.total == 0 {
		return
	}
	p.next, p.shown = now.Add(100*time.Millisecond), true
	const width = 40
	full := int(min(p.done*width/p.total, width))
	fmt.Fprintf(p.t.err, "\r[%s%s] %3d%%  %.0f MB/s ", strings.Repeat("#", full), strings.Repeat(".", width-full), min(p.done*100/p.total, 100),
		float64(p.done)/1e6/now.Sub(p.begun).Seconds())
}

// end takes the bar away.
func (p *progress) end() {
	if p.shown {
		fmt.Fprintf(p.t.err, "\r%s\r", strings.Repeat(" ", 70))
	}
}
