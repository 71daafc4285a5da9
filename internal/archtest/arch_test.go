package archtest

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Limits on sizes; STYLE: files 800 lines, tests 1200, functions 80.
const (
	maxFileLines     = 800
	maxTestFileLines = 1200
	maxFunctionLines = 80
)

// vagueNames say nothing about what is inside.
func vagueNames() []string {
	return []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc"}
}

// sourceFile is one parsed file.
type sourceFile struct {
	path  string // relative to the module, with slashes
	pkg   string // as in layers.txt
	test  bool
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// moduleRoot is the folder of go.mod above the test's own.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}

// parseModule parses every Go file of the module, whatever its build tags, and no other module's.
func parseModule(t *testing.T) []sourceFile {
	t.Helper()
	root := moduleRoot(t)
	var files []sourceFile
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			_, modErr := os.Stat(filepath.Join(full, "go.mod"))
			name := d.Name()
			if rel != "." && (modErr == nil || name == "testdata" || name == "vendor" || name[0] == '.' || name[0] == '_') {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		text, err := os.ReadFile(full)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, rel, text, parser.ParseComments)
		if err != nil {
			return err
		}
		pkg, _ := short(module + "/" + path.Dir(rel))
		files = append(files, sourceFile{
			path: rel, pkg: pkg, test: strings.HasSuffix(rel, "_test.go"), fset: fset, ast: file,
			lines: strings.Count(string(text), "\n"),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d files found below %s", len(files), root)
	}
	return files
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLayers(t *testing.T) {
	l, err := parseLayers(readText(t, "layers.txt"))
	if err != nil {
		t.Fatal(err)
	}
	unknown := map[string]bool{}
	for _, file := range parseModule(t) {
		if _, known := l.ruleFor(file.pkg); !known && !unknown[file.pkg] {
			unknown[file.pkg] = true
			t.Errorf("package %s has no line in layers.txt: add \"%s : \" and what it may import, and say in the commit why it could not join a package that exists", file.pkg, file.pkg)
		}
		for _, spec := range file.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if problem := l.check(file.pkg, imported, file.test); problem != "" {
				t.Errorf("%s: %s %s", file.fset.Position(spec.Pos()), file.pkg, problem)
			}
		}
	}
}

func TestPackages(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]bool{}
	for _, file := range parseModule(t) {
		if slices.Contains(vagueNames(), path.Base(file.pkg)) {
			t.Errorf("%s: %q does not say what the package is about", file.path, path.Base(file.pkg))
		}
		onlyTests := file.test
		seen[file.pkg] = seen[file.pkg] || !onlyTests
		documented[file.pkg] = documented[file.pkg] || file.ast.Doc != nil
	}
	for pkg := range seen {
		if seen[pkg] && !documented[pkg] {
			t.Errorf("package %s has no package comment: add doc.go", pkg)
		}
	}
}

func TestSizes(t *testing.T) {
	excused := parseExceptions(t)
	over := map[string]int{}
	for _, file := range parseModule(t) {
		if ast.IsGenerated(file.ast) {
			continue
		}
		limit := maxFileLines
		if file.test {
			limit = maxTestFileLines
		}
		if file.lines > limit {
			over["file "+file.path] = file.lines
		}
		for _, decl := range file.ast.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || file.test { // a table of cases may be long
				continue
			}
			lines := file.fset.Position(f.End()).Line - file.fset.Position(f.Pos()).Line + 1
			if lines > maxFunctionLines {
				over["function "+file.path+":"+f.Name.Name] = lines
			}
		}
	}
	for what, lines := range over {
		if lines > excused[what] {
			t.Errorf("%s has %d lines (limits: file %d, test file %d, function %d): split it", what, lines, maxFileLines, maxTestFileLines, maxFunctionLines)
		}
	}
	for what, lines := range excused {
		if over[what] < lines {
			t.Errorf("exceptions.txt: %q has %d lines now, not %d: shrink or remove the entry", what, over[what], lines)
		}
	}
}

func parseExceptions(t *testing.T) map[string]int {
	t.Helper()
	excused := map[string]int{}
	scanner := bufio.NewScanner(strings.NewReader(readText(t, "exceptions.txt")))
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var kind, where string
		var lines int
		if _, err := fmt.Sscan(line, &kind, &where, &lines); err != nil {
			t.Fatalf("exceptions.txt: %q: %v", line, err)
		}
		excused[kind+" "+where] = lines
	}
	return excused
}

// TestNoSleepInTests: a test that sleeps and then expects a state depends on the machine's speed. A
// sleep inside a loop is a poll, and files that use testing/synctest sleep in virtual time.
func TestNoSleepInTests(t *testing.T) {
	for _, file := range parseModule(t) {
		virtual := slices.ContainsFunc(file.ast.Imports, func(s *ast.ImportSpec) bool { return s.Path.Value == `"testing/synctest"` })
		if !file.test || virtual {
			continue
		}
		for _, at := range sleeps(file.ast) {
			t.Errorf("%s: time.Sleep in a test: wait on a channel, poll in a loop with a deadline, or use testing/synctest", file.fset.Position(at))
		}
	}
}

// sleeps finds the calls of time.Sleep that are in no loop.
func sleeps(root ast.Node) []token.Pos {
	var found []token.Pos
	ast.Inspect(root, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ForStmt, *ast.RangeStmt:
			return false
		case *ast.CallExpr:
			selector, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := selector.X.(*ast.Ident); ok && x.Name == "time" && selector.Sel.Name == "Sleep" {
				found = append(found, n.Pos())
			}
		}
		return true
	})
	return found
}

func TestNoInit(t *testing.T) {
	for _, file := range parseModule(t) {
		for _, decl := range file.ast.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && !file.test {
				t.Errorf("%s: init functions hide the order of things: wire it in internal/server", file.fset.Position(f.Pos()))
			}
		}
	}
}

// TestRules checks the checker: a rule that never fires protects nothing.
func TestRules(t *testing.T) {
	l, err := parseLayers("@base = pki\nstore : @base\nagent : @base container\nagent/* : @base\nserver : *\ntests : gantrytest\n" +
		"own go.etcd.io/ : store\nown go.etcd.io/bbolt : agent\nown k8s.io/kubernetes/ : agent/*\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		pkg, path string
		test, ok  bool
	}{
		"allowed":                 {"store", module + "/internal/pki", false, true},
		"upwards":                 {"store", module + "/internal/agent", false, false},
		"sibling":                 {"agent", module + "/internal/store", false, false},
		"pattern":                 {"agent/probe", module + "/internal/pki", false, true},
		"pattern is not parent":   {"agent/probe", module + "/internal/container", false, false},
		"everything":              {"server", module + "/internal/store", false, true},
		"owner":                   {"store", "go.etcd.io/etcd/server/v3/etcdserver", false, true},
		"not owner":               {"agent", "go.etcd.io/etcd/server/v3/etcdserver", false, false},
		"longest own wins":        {"store", "go.etcd.io/bbolt", false, false},
		"longest own allows":      {"agent", "go.etcd.io/bbolt", false, true},
		"own by pattern":          {"agent/probe", "k8s.io/kubernetes/pkg/x", false, true},
		"own is not a prefix":     {"store", "k8s.io/kubernetes-not", false, true},
		"tests may use testkit":   {"store", module + "/internal/gantrytest", true, true},
		"code may not":            {"store", module + "/internal/gantrytest", false, false},
		"tests look outside":      {"agent", "go.etcd.io/etcd/x", true, true},
		"tests not upwards":       {"store", module + "/internal/agent", true, false},
		"external test of itself": {"store", module + "/internal/store", true, true},
		"standard library":        {"store", "net/http", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			if problem := l.check(tc.pkg, tc.path, tc.test); (problem == "") != tc.ok {
				t.Errorf("check = %q, want ok=%v", problem, tc.ok)
			}
		})
	}
	for _, bad := range []string{"nonsense", "a : @nogroup", "a :\na :"} {
		if _, err := parseLayers(bad); err == nil {
			t.Errorf("parseLayers accepted %q", bad)
		}
	}
	if _, ok := l.ruleFor("newcomer"); ok {
		t.Error("a package without a line has a rule")
	}
}
