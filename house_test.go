package sallyport_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules of the house that a machine can hold. They read the files inside the test process, so that the test cache
// knows what they depend on.

const module = "github.com/sallyport/sallyport"

// source is one package of ours, without its tests.
type source struct {
	dir     string // relative to the module's root
	files   []*ast.File
	names   []string // of the files
	imports []string // of our own packages, by their directory, sorted
}

func load(t *testing.T) map[string]*source {
	t.Helper()
	packages := map[string]*source{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" || (p != "." && strings.HasPrefix(d.Name(), ".")) || p == "build") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(p))
		s := packages[dir]
		if s == nil {
			s = &source{dir: dir}
			packages[dir] = s
		}
		s.files = append(s.files, f)
		s.names = append(s.names, p)
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if ours, ok := strings.CutPrefix(name, module+"/"); ok && !slices.Contains(s.imports, ours) {
				s.imports = append(s.imports, ours)
			}
		}
		slices.Sort(s.imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 10 {
		t.Fatalf("found only %d packages: the walk is broken", len(packages))
	}
	return packages
}

// table reads ARCHITECTURE.md: the rows whose first cell is a package in backquotes, and the packages in backquotes
// in their last cell, which is what they may import.
func table(t *testing.T) map[string][]string {
	t.Helper()
	f, err := os.Open("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := map[string][]string{}
	quoted := func(cell string) []string {
		var out []string
		for i, part := range strings.Split(cell, "`") {
			if i%2 == 1 {
				out = append(out, part)
			}
		}
		return out
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		cells := strings.Split(s.Text(), "|")
		if len(cells) != 5 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		rows[quoted(cells[1])[0]] = quoted(cells[3])
	}
	if len(rows) < 10 {
		t.Fatalf("ARCHITECTURE.md: found only %d rows of packages: the table's form has changed", len(rows))
	}
	return rows
}

func TestImportTable(t *testing.T) {
	packages, rows := load(t), table(t)
	for dir, s := range packages {
		if dir == "." {
			continue
		}
		allowed, ok := rows[dir]
		if !ok {
			t.Errorf("package %s is not in ARCHITECTURE.md's table", dir)
			continue
		}
		for _, i := range s.imports {
			if !slices.Contains(allowed, i) && !slices.Contains(allowed, "all") {
				t.Errorf("package %s imports %s, which ARCHITECTURE.md does not allow", dir, i)
			}
		}
		for _, i := range allowed {
			if i != "all" && !slices.Contains(s.imports, i) {
				t.Errorf("ARCHITECTURE.md says that %s imports %s, but it does not", dir, i)
			}
		}
	}
	for dir := range rows {
		if packages[dir] == nil {
			t.Errorf("ARCHITECTURE.md names package %s, which does not exist", dir)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for dir, s := range load(t) {
		var comments []string
		for _, f := range s.files {
			if f.Doc != nil {
				comments = append(comments, f.Doc.Text())
			}
		}
		switch {
		case len(comments) != 1:
			t.Errorf("%s: %d package comments, want one", dir, len(comments))
		case !strings.HasPrefix(comments[0], "Package "+s.files[0].Name.Name+" ") && !strings.HasPrefix(comments[0], "Command "):
			t.Errorf("%s: its comment begins %q", dir, firstLine(comments[0]))
		}
		public := dir == "identity" || dir == "bearer" || dir == "bearergrpc" || dir == "safedial"
		if public && len(comments) == 1 && strings.Count(comments[0], "\n") < 10 {
			t.Errorf("%s is public: its comment must open with an example and end with the limits", dir)
		}
	}
}

func TestNamesOfRooms(t *testing.T) {
	for dir, s := range load(t) {
		if slices.Contains([]string{"util", "utils", "common", "types", "helpers", "shared", "pkg"}, path.Base(dir)) {
			t.Errorf("%s: a package is named for what it does", dir)
		}
		if strings.HasPrefix(dir, "internal/") && strings.Count(dir, "/") > 1 {
			t.Errorf("%s: two levels of folders under internal, never three", dir)
		}
		if len(s.files) == 0 {
			t.Errorf("%s is empty", dir)
		}
	}
}

// TestNoHiddenActs holds that nothing happens before main, and that only main ends the process.
func TestNoHiddenActs(t *testing.T) {
	for dir, s := range load(t) {
		for i, f := range s.files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: init() is not used", s.names[i])
				}
			}
			if f.Name.Name == "main" || dir == "internal/sandbox" { // the sandbox's child half is a main of its own
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "os" && sel.Sel.Name == "Exit" || x.Name == "log" && strings.HasPrefix(sel.Sel.Name, "Fatal")) {
						t.Errorf("%s: %s.%s outside main", s.names[i], x.Name, sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// TestPublicNames holds the budget of exported names in a public package.
func TestPublicNames(t *testing.T) {
	packages := load(t)
	for dir, budget := range map[string]int{
		"identity": 10,
		"bearer":   16, // it follows the keys of issuers and of gates (2 more), asks issuers (1), and has another side, which attaches a token: Transport and Recipient
		"safedial": 11,

		"bearergrpc": 10,
	} {
		var names []string
		for _, f := range packages[dir].files {
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.IsExported() {
						names = append(names, d.Name.Name)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						switch spec := spec.(type) {
						case *ast.TypeSpec:
							if spec.Name.IsExported() {
								names = append(names, spec.Name.Name)
							}
						case *ast.ValueSpec:
							// The reason codes are one table, however long.
							if d.Tok == token.CONST {
								continue
							}
							for _, n := range spec.Names {
								if n.IsExported() {
									names = append(names, n.Name)
								}
							}
						}
					}
				}
			}
		}
		if len(names) > budget {
			t.Errorf("%s exports %d names (%s), the budget is %d: is one of them for us alone?", dir, len(names), strings.Join(names, ", "), budget)
		}
	}
}

func TestModuleIsTidy(t *testing.T) {
	// The files it depends on, read here so that the test cache notices a change.
	for _, name := range []string{"go.mod", "go.sum"} {
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	load(t)
	out, err := exec.Command("go", "mod", "tidy", "-diff").CombinedOutput()
	if err != nil {
		t.Errorf("go mod tidy would change go.mod or go.sum: %v\n%s", err, out)
	}
}

// TestEveryDependencyIsJustified holds that each direct dependency has its sentence.
func TestEveryDependencyIsJustified(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("doc/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	for _, line := range strings.Split(string(mod), "\n") {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(line, "\t") || !strings.HasPrefix(fields[1], "v") {
			continue
		}
		direct++
		if !strings.Contains(string(doc), "`"+fields[0]+"`") {
			t.Errorf("doc/dependencies.md does not say why %s is needed", fields[0])
		}
	}
	if direct == 0 {
		t.Error("found no direct dependency in go.mod: its form has changed")
	}
}

func firstLine(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }
