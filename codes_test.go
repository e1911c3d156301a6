package sallyport_test

import (
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/policy"
)

// notCodesOfTheGate are those that bearer.Transport gives to a program of its own.
var notCodesOfTheGate = map[string]bool{"authorization_present": true, "host_mismatch": true, "transport_unusable": true}

// TestCodesAreExplained holds doc/codes.md against the codes that the gate in front gives: each is there, and no other.
func TestCodesAreExplained(t *testing.T) {
	text, err := os.ReadFile("doc/codes.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(cells[1], -1) {
				explained[m[1]] = true
			}
		}
	}
	given := map[string]bool{}
	for _, c := range policy.Codes() { // the egress has others
		given[string(c.Code)] = true
		if !explained[string(c.Code)] {
			t.Errorf("%q is not in doc/codes.md", c.Code)
		}
	}
	packages := load(t)
	for _, dir := range []string{"bearer", "internal/jws", "internal/wire", "internal/proof", "internal/ingress"} {
		for _, f := range packages[dir].files {
			for code := range codesOf(f) {
				if given[code] = !notCodesOfTheGate[code]; given[code] && !explained[code] {
					t.Errorf("%s: %q is not in doc/codes.md", dir, code)
				}
			}
		}
	}
	for code := range explained {
		if !given[code] {
			t.Errorf("doc/codes.md: nobody gives %q", code)
		}
	}
}

// codesOf are the values of a file's constants that are codes by their name or type, and of why a request is ended.
func codesOf(f *ast.File) map[string]bool {
	found := map[string]bool{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			name := v.Names[0].Name
			typed := false
			switch of := v.Type.(type) {
			case *ast.Ident:
				typed = of.Name == "Code"
			case *ast.SelectorExpr:
				typed = of.Sel.Name == "Code"
			}
			if !typed && !regexp.MustCompile("^(code|Code|lost)[A-Z]").MatchString(name) || len(v.Values) == 0 {
				continue
			}
			if l, ok := v.Values[0].(*ast.BasicLit); ok && l.Kind == token.STRING {
				if code, err := strconv.Unquote(l.Value); err == nil {
					found[code] = true
				}
			}
		}
	}
	return found
}
