package sallyport_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	links    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	fenced   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	notSlug  = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestLinksResolve: what a page points to is there, down to the heading.
func TestLinksResolve(t *testing.T) {
	pages := map[string]map[string]bool{} // their headings, as links name them
	texts := map[string]string{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || p == "build" || (p != "." && strings.HasPrefix(d.Name(), "."))) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".md") {
			return nil
		}
		b, err := os.ReadFile(p)
		texts[p], pages[p] = fenced.ReplaceAllString(string(b), ""), map[string]bool{}
		for _, h := range headings.FindAllStringSubmatch(texts[p], -1) {
			pages[p][strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) < 20 {
		t.Fatalf("only %d pages were found", len(pages))
	}
	for p, text := range texts {
		for _, m := range links.FindAllStringSubmatch(text, -1) {
			to, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			if to = path.Join(path.Dir(p), to); m[1][0] == '#' {
				to = p
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: (%s): %v", p, m[1], err)
			}
			if heading != "" && pages[to] != nil && !pages[to][heading] {
				t.Errorf("%s: (%s): there is no such heading", p, m[1])
			}
		}
	}
}
