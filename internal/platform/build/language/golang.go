package language

import (
	"errors"
	"fmt"
	gobuild "go/build"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// MainsError says that a Go module has several programs and it is unclear which is meant.
type MainsError struct{ Mains []string }

func (e *MainsError) Error() string {
	return fmt.Sprintf("this module has %d programs: %s; say which in gantry.yaml, such as\nbuild: {path: %s}", len(e.Mains), strings.Join(e.Mains, ", "), e.Mains[0])
}

// golang finds the program of a module. A folder with one may also lie below its go.mod.
func (d detector) golang() (Plan, error) {
	if mainOf(d.tree) {
		return Plan{Main: "."}, nil
	}
	if !d.has("go.mod") {
		return Plan{}, errors.New("there is no go.mod in the source, and no program in its folder")
	}
	mains, err := mains(d.tree)
	switch {
	case err != nil:
		return Plan{}, err
	case len(mains) == 0:
		return Plan{}, errors.New("there is a go.mod, but no package main that could run")
	case len(mains) > 1:
		return Plan{}, &MainsError{Mains: mains}
	}
	return Plan{Main: mains[0]}, nil
}

// mains finds the folders of package main, less those that the go command does not look into.
func mains(source fs.FS) ([]string, error) {
	var out []string
	err := fs.WalkDir(source, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() {
			return nil
		}
		base := path.Base(name)
		_, nested := fs.Stat(source, path.Join(name, "go.mod"))
		if name != "." && (slices.Contains([]string{"testdata", "vendor", "node_modules"}, base) || base[0] == '.' || base[0] == '_' || nested == nil) {
			return fs.SkipDir
		}
		inside, err := fs.Sub(source, name)
		if err == nil && mainOf(inside) {
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for Go programs: %w", err)
	}
	return out, nil
}

// mainOf reports whether a folder holds a package main that is compiled for Linux.
func mainOf(folder fs.FS) bool {
	names, _ := fs.Glob(folder, "*.go")
	target := gobuild.Default
	target.GOOS, target.CgoEnabled = "linux", false
	target.OpenFile = func(name string) (io.ReadCloser, error) { return folder.Open(path.Base(name)) }
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if match, err := target.MatchFile("", name); err != nil || !match {
			continue
		}
		text, err := fs.ReadFile(folder, name)
		if err != nil {
			continue
		}
		if parsed, err := parser.ParseFile(token.NewFileSet(), name, text, parser.PackageClauseOnly); err == nil {
			return parsed.Name.Name == "main"
		}
	}
	return false
}
