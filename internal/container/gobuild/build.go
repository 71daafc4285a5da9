package gobuild

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// Errors that a caller may want to tell apart.
var (
	ErrNoGo    = errors.New("the go command is not on PATH; install Go (https://go.dev/dl) to build images from source")
	ErrNotMain = errors.New("not a main package: only a program can become an image")
)

// CompileError is a failed compilation with what the compiler said.
type CompileError struct {
	Package string
	Output  string // of the go command, a line per error
}

func (e *CompileError) Error() string {
	return fmt.Sprintf("compile %s:\n%s", e.Package, strings.TrimSpace(e.Output))
}

// Options say what to build.
type Options struct {
	Dir      string   // folder of the main package
	Name     string   // image name such as "hello:dev"; default the program's name and "latest"
	Arch     string   // GOARCH; default this machine's
	Env      []string // added to the environment of the go command
	Args     []string // arguments that the image's entry point has by default
	Commit   string   // of the source, written into the image; may be empty
	Progress io.Writer
}

// Result is a built image.
type Result struct {
	Name      string // image name
	Program   string // path of the program in the image
	ID        string // digest of the image's config
	SizeBytes int64  // of its compressed layers
}

// Build compiles the package and writes the image to out as a docker archive.
func Build(ctx context.Context, opts Options, out io.Writer) (Result, error) {
	opts.Arch = cmp.Or(opts.Arch, runtime.GOARCH)
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		return Result{}, ErrNoGo
	}
	pkg, err := describe(ctx, tool, opts)
	if err != nil {
		return Result{}, err
	}
	program := pkg.programName()
	opts.Name = cmp.Or(opts.Name, imageName(program))
	temp, err := os.MkdirTemp("", "gantry-build-")
	if err != nil {
		return Result{}, fmt.Errorf("build image: %w", err)
	}
	defer os.RemoveAll(temp)
	binary := filepath.Join(temp, program)
	fmt.Fprintf(opts.Progress, "compiling %s for linux/%s\n", pkg.ImportPath, opts.Arch)
	if err := compile(ctx, tool, opts, pkg.ImportPath, binary); err != nil {
		return Result{}, err
	}
	fmt.Fprintf(opts.Progress, "packing %s\n", opts.Name)
	result, err := pack(opts, program, binary, out)
	if err != nil {
		return Result{}, fmt.Errorf("pack image: %w", err)
	}
	return result, nil
}

// goPackage is what is needed of go list's answer.
type goPackage struct {
	Name       string
	ImportPath string
	Dir        string
	Module     *struct{ Path, Dir string }
}

// programName is the name that go install would give the program.
func (p goPackage) programName() string {
	return ProgramName(p.ImportPath, p.Dir)
}

// ProgramName is the name that go install would give the program of a package in a folder.
func ProgramName(importPath, dir string) string {
	if last := path.Base(importPath); len(last) > 1 && last[0] == 'v' && strings.Trim(last[1:], "0123456789") == "" {
		importPath = path.Dir(importPath) // the end names the major version only
	}
	name := path.Base(importPath)
	if name == "." || name == "/" || name == "command-line-arguments" {
		name = filepath.Base(dir)
	}
	return name
}

// describe asks the go command about the package.
func describe(ctx context.Context, tool string, opts Options) (goPackage, error) {
	if info, err := os.Stat(opts.Dir); err != nil || !info.IsDir() {
		return goPackage{}, fmt.Errorf("build image: %s is not a folder", opts.Dir)
	}
	stdout, stderr, err := run(ctx, tool, opts, "list", "-e=false", "-json=Name,ImportPath,Dir,Module", ".")
	if err != nil {
		return goPackage{}, listError(opts.Dir, stderr, err)
	}
	var pkg goPackage
	if err := json.Unmarshal(stdout, &pkg); err != nil {
		return goPackage{}, fmt.Errorf("build image: read go list's answer: %w", err)
	}
	if pkg.Name != "main" {
		return goPackage{}, fmt.Errorf("build image: %s is package %s: %w", opts.Dir, pkg.Name, ErrNotMain)
	}
	return pkg, nil
}

// listError explains why go list failed.
func listError(dir string, stderr []byte, err error) error {
	message := strings.TrimSpace(string(stderr))
	switch {
	case strings.Contains(message, "go.mod file not found"):
		return fmt.Errorf("build image: %s is in no Go module: run 'go mod init' there", dir)
	case strings.Contains(message, "no Go files"):
		return fmt.Errorf("build image: there are no Go files in %s", dir)
	case message != "":
		return &CompileError{Package: dir, Output: message}
	default:
		return fmt.Errorf("build image: go list: %w", err)
	}
}

// compile builds a static program without anything of this machine in it.
func compile(ctx context.Context, tool string, opts Options, importPath, target string) error {
	_, stderr, err := run(ctx, tool, opts, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", target, ".")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return &CompileError{Package: importPath, Output: cmp.Or(string(stderr), err.Error())}
	}
	return nil
}

// run runs the go command in the package's folder for the image's platform.
func run(ctx context.Context, tool string, opts Options, args ...string) (stdout, stderr []byte, err error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = opts.Dir
	cmd.Env = append(os.Environ(), opts.Env...)
	cmd.Env = append(cmd.Env, "GOOS=linux", "GOARCH="+opts.Arch, "CGO_ENABLED=0", "GOFLAGS="+buildFlags())
	var outBuf, errBuf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &outBuf, &errBuf
	err = cmd.Run()
	return outBuf.Bytes(), errBuf.Bytes(), err
}

// buildFlags keeps the user's GOFLAGS that say where modules come from.
func buildFlags() string {
	var keep []string
	for flag := range strings.FieldsSeq(os.Getenv("GOFLAGS")) {
		if strings.HasPrefix(flag, "-mod") {
			keep = append(keep, flag)
		}
	}
	return strings.Join(keep, " ")
}

// imageName makes a program's name into an image name.
func imageName(program string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '-'
		}
	}, program)
	return cmp.Or(strings.Trim(clean, "-"), "app") + ":latest"
}
