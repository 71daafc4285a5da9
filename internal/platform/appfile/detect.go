package appfile

import (
	"encoding/json"
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

	"gantry.dev/gantry/api/v1alpha1"
)

// Found is what kind of source a folder holds, and how that was told.
type Found struct {
	Kind      string            // one of v1alpha1's Kind constants
	By        string            // the file it was found by, such as "go.mod"
	Why       string            // a sentence for people
	Main      string            // of Go: the folder of the main package, relative
	Processes map[string]string // of a Procfile or package.json
	Static    string            // of a package.json without start: the folder that its build makes
}

// errNothing says that a folder holds nothing that could be deployed.
var errNothing = errors.New("nothing that could be deployed")

// IsNothing reports whether an error of Detect says that a folder holds nothing that could be deployed.
func IsNothing(err error) bool { return errors.Is(err, errNothing) }

// MainsError says that a Go module has several programs and it is unclear which is meant.
type MainsError struct{ Mains []string }

func (e *MainsError) Error() string {
	return fmt.Sprintf("this module has %d programs: %s; say which in gantry.yaml, such as\nbuild: {path: %s}", len(e.Mains), strings.Join(e.Mains, ", "), e.Mains[0])
}

// Order is the order in which Detect looks.
func Order() []string {
	return []string{"Dockerfile", "Procfile", "go.mod", "package.json", "requirements.txt", "pyproject.toml", "index.html"}
}

// Detect finds out how to build the source in a folder. dockerfile is the one that the file names, or "".
func Detect(source fs.FS, dockerfile string) (Found, error) {
	if dockerfile != "" {
		if !exists(source, dockerfile) {
			return Found{}, fmt.Errorf("there is no %s, which build.dockerfile names", dockerfile)
		}
		return Found{Kind: v1alpha1.KindDockerfile, By: dockerfile, Why: "gantry.yaml names " + dockerfile}, nil
	}
	for _, name := range Order() {
		if !exists(source, name) {
			continue
		}
		found, err := detectBy(source, name)
		found.By = name
		return found, err
	}
	if main := mainOf(source); main {
		return Found{Kind: v1alpha1.KindGo, By: "*.go", Main: ".", Why: "it is a Go program of a module further up"}, nil
	}
	if exists(source, "dockerfile") || exists(source, "Containerfile") {
		return Found{}, fmt.Errorf("%w: a Dockerfile is called Dockerfile; name another in gantry.yaml: build: {dockerfile: Containerfile}", errNothing)
	}
	return Found{}, fmt.Errorf("%w is here: looked for %s", errNothing, strings.Join(Order(), ", "))
}

func detectBy(source fs.FS, name string) (Found, error) {
	switch name {
	case "Dockerfile":
		return Found{Kind: v1alpha1.KindDockerfile, Why: "there is a Dockerfile"}, nil
	case "Procfile":
		return detectProcfile(source)
	case "go.mod":
		return detectGo(source)
	case "package.json":
		return detectNode(source)
	case "index.html":
		return Found{Kind: v1alpha1.KindStatic, Static: ".", Why: "there is an index.html: static files"}, nil
	}
	return Found{Kind: v1alpha1.KindPython, Why: "there is a " + name + ": Python"}, nil
}

func detectProcfile(source fs.FS) (Found, error) {
	text, err := fs.ReadFile(source, "Procfile")
	if err != nil {
		return Found{}, fmt.Errorf("read Procfile: %w", err)
	}
	processes, err := Procfile("Procfile", text)
	if err != nil {
		return Found{}, err
	}
	found := Found{Kind: v1alpha1.KindProcfile, Processes: processes}
	for _, name := range []string{"go.mod", "package.json", "requirements.txt", "pyproject.toml"} {
		if exists(source, name) {
			found.Why = "there is a Procfile, beside " + name
			return found, nil
		}
	}
	return found, errors.New("there is a Procfile, but no go.mod, package.json, requirements.txt or pyproject.toml that tells its language; write a Dockerfile")
}

func detectGo(source fs.FS) (Found, error) {
	mains, err := mains(source)
	if err != nil {
		return Found{}, err
	}
	switch {
	case len(mains) == 0:
		return Found{}, errors.New("there is a go.mod, but no package main that could run")
	case slices.Contains(mains, "."):
		return Found{Kind: v1alpha1.KindGo, Main: ".", Why: "there is a go.mod and a program in its folder"}, nil
	case len(mains) > 1:
		return Found{}, &MainsError{Mains: mains}
	}
	return Found{Kind: v1alpha1.KindGo, Main: mains[0], Why: "there is a go.mod and one program, " + mains[0]}, nil
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
		if name != "." && (base == "testdata" || base == "vendor" || base == "node_modules" || base[0] == '.' || base[0] == '_' || exists(source, path.Join(name, "go.mod"))) {
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

// nodePackage is what is needed of a package.json.
type nodePackage struct {
	Scripts map[string]string `json:"scripts"`
	Main    string            `json:"main"`
}

// distFolders are where builds of pages put their result.
func distFolders() []string { return []string{"dist", "build", "out", "public"} }

func detectNode(source fs.FS) (Found, error) {
	text, err := fs.ReadFile(source, "package.json")
	if err != nil {
		return Found{}, fmt.Errorf("read package.json: %w", err)
	}
	var pkg nodePackage
	if err := json.Unmarshal(text, &pkg); err != nil {
		return Found{}, fmt.Errorf("package.json is not JSON: %w", err)
	}
	manager := PackageManager(source)
	found := Found{Kind: v1alpha1.KindNode, Why: "there is a package.json (" + manager + ")"}
	if pkg.Scripts["start"] != "" {
		found.Processes = map[string]string{v1alpha1.WebProcess: manager + " start"}
		return found, nil
	}
	for _, dir := range distFolders() {
		if exists(source, dir) {
			found.Kind, found.Static = v1alpha1.KindStatic, dir
			found.Why = fmt.Sprintf("there is a package.json (%s) without the script start, and a folder %s: static files", manager, dir)
			return found, nil
		}
	}
	if pkg.Scripts["build"] != "" {
		found.Why += " with a script build and no script start: what it makes in " + strings.Join(distFolders(), ", ") + " is served as static files"
		return found, nil
	}
	for _, main := range []string{pkg.Main, "server.js", "index.js", "app.js"} {
		if main != "" && exists(source, main) {
			found.Processes = map[string]string{v1alpha1.WebProcess: "node " + main}
			return found, nil
		}
	}
	return found, errors.New("package.json has no script start, no script build and no main: say how to start it with \"scripts\": {\"start\": …}")
}

// PackageManager is the program that a lock file belongs to: npm, pnpm or yarn.
func PackageManager(source fs.FS) string {
	switch {
	case exists(source, "pnpm-lock.yaml"):
		return "pnpm"
	case exists(source, "yarn.lock"):
		return "yarn"
	}
	return "npm"
}

func exists(source fs.FS, name string) bool {
	_, err := fs.Stat(source, path.Clean(name))
	return err == nil
}
