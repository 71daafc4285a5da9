//go:build linux

package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container/gobuild"
	"gantry.dev/gantry/internal/platform/build/job"
)

// compiler is the user that the go command runs as.
const compiler = 65532

// maxOutput bounds what is kept of what the compiler says.
const maxOutput = 64 << 10

// goDir holds what the go command keeps between builds.
func (e *engine) goDir() string { return filepath.Join(e.setup.Dir, "go", "cache") }

// goImage compiles the program in a folder of a module, without running any of its code, and packs it.
func (e *engine) goImage(ctx context.Context, r job.Request, tree, folder string, out *reporter) (string, []material, error) {
	goroot, err := e.toolchain(ctx, out)
	if err != nil {
		return "", nil, err
	}
	j, err := e.newJail(goroot, tree)
	if err != nil {
		return "", nil, err
	}
	defer j.close()
	inside := path.Join("/src", filepath.ToSlash(strings.TrimPrefix(folder, tree)))
	out.say(job.Event{Type: job.Step, Text: "1/3 go list"})
	target, err := j.describe(ctx, inside, out)
	if err != nil {
		return "", nil, err
	}
	step := "2/3 go build " + target.importPath
	out.say(job.Event{Type: job.Step, Text: step})
	_, text, err := j.run(ctx, target.dir, out, step, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", "/out/program", ".")
	if err != nil {
		return "", nil, compileError(ctx, target.importPath, inside, text, err)
	}
	out.say(job.Event{Type: job.Step, Text: "3/3 pack " + target.name()})
	img, err := gobuild.Image(gobuild.Options{Commit: r.Commit}, target.name(), filepath.Join(j.root, "out", "program"))
	if err != nil {
		return "", nil, fmt.Errorf("packing the program: %w", err)
	}
	sum, err := e.push(ctx, r.Repository, img)
	if err != nil {
		return "", nil, err
	}
	bases := []material{}
	return sum, bases, trim(e.goDir(), e.setup.CacheBytes/2)
}

// program is a main package.
type program struct{ importPath, dir string }

func (p program) name() string { return gobuild.ProgramName(p.importPath, p.dir) }

// describe asks the go command what the package in a folder is called.
func (j *jail) describe(ctx context.Context, inside string, out *reporter) (program, error) {
	stdout, text, err := j.run(ctx, inside, out, "1/3 go list", "list", "-e", "-f", `{{.Name}}{{"\t"}}{{.ImportPath}}`, ".")
	if err != nil {
		return program{}, compileError(ctx, ".", inside, text, err)
	}
	name, importPath, _ := strings.Cut(strings.TrimSpace(string(stdout)), "\t")
	if name != "" && name != "main" { // without a name it has errors, which compiling tells
		return program{}, &userError{text: fmt.Sprintf("%s is not a program: its package is named %s", importPath, name)}
	}
	return program{importPath, inside}, nil
}

var goPosition = regexp.MustCompile(`(?m)^(?:\./)?([^\s:]+\.(?:go|mod|sum)):(\d+)`)

// compileError says what the compiler said, and where first.
func compileError(ctx context.Context, pkg, inside, text string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("running the go command: %w", err)
	}
	text = strings.ReplaceAll(text, inside+"/", "")
	out := &userError{text: fmt.Sprintf("compile %s:\n%s", pkg, strings.TrimSpace(text)), exit: exit.ExitCode()}
	if position := goPosition.FindStringSubmatch(text); position != nil {
		out.file = position[1]
		out.line, _ = strconv.Atoi(position[2]) // digits by the expression
	}
	return out
}

// jail is what the go command sees of the machine: the toolchain, the source, a cache.
type jail struct {
	root string
	env  []string
}

// newJail mounts it. The mounts are in this process's mount namespace and end with it.
func (e *engine) newJail(goroot, tree string) (*jail, error) {
	for _, dir := range []string{"build", "mod", "path"} {
		if err := os.MkdirAll(filepath.Join(e.goDir(), dir), 0o755); err != nil {
			return nil, fmt.Errorf("making the go cache: %w", err)
		}
		if err := os.Chown(filepath.Join(e.goDir(), dir), compiler, compiler); err != nil {
			return nil, fmt.Errorf("making the go cache: %w", err)
		}
	}
	root, err := os.MkdirTemp(filepath.Join(e.setup.Dir, "tmp"), "go")
	if err != nil {
		return nil, fmt.Errorf("making the compiler's root: %w", err)
	}
	j := &jail{root: root, env: goEnvironment()}
	if err := j.mount(goroot, tree, e.goDir()); err != nil {
		j.close()
		return nil, fmt.Errorf("making the compiler's root: %w", err)
	}
	return j, nil
}

func (j *jail) mount(goroot, tree, cache string) error {
	if err := unix.Mount("tmpfs", j.root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"goroot", "src", "cache", "out", "tmp", "dev", "proc", "etc/ssl"} {
		if err := os.MkdirAll(filepath.Join(j.root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"out", "tmp"} {
		if err := os.Chmod(filepath.Join(j.root, dir), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", filepath.Join(j.root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2"); err != nil {
		return err
	}
	for _, b := range []struct {
		from, to string
		readOnly bool
	}{
		{goroot, "goroot", true}, {tree, "src", true}, {cache, "cache", false}, {"/etc/ssl", "etc/ssl", true},
		{"/etc/resolv.conf", "etc/resolv.conf", true}, {"/etc/hosts", "etc/hosts", true}, {"/dev/null", "dev/null", false}, {"/dev/urandom", "dev/urandom", false},
	} {
		if err := bind(b.from, filepath.Join(j.root, b.to), b.readOnly); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts a file or folder elsewhere, if it is there.
func bind(from, to string, readOnly bool) error {
	info, err := os.Stat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", from, err)
	}
	if readOnly {
		if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("mounting %s read-only: %w", from, err)
		}
	}
	return nil
}

// close takes the mounts away.
func (j *jail) close() {
	// Mounts below go with it; what fails here ends with the process.
	_ = unix.Unmount(j.root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = os.Remove(j.root)
}

// goEnvironment is the go command's: nothing of this process but where modules come from.
func goEnvironment() []string {
	env := []string{
		"GOROOT=/goroot", "PATH=/goroot/bin", "HOME=/tmp", "GOPATH=/cache/path", "GOCACHE=/cache/build", "GOMODCACHE=/cache/mod",
		"GOENV=off", "GOTELEMETRY=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + runtime.GOARCH, "TMPDIR=/tmp", "GOFLAGS=-modcacherw",
	}
	for _, name := range []string{
		"GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOINSECURE", "GOTOOLCHAIN",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
	} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// run runs the go command; what it says on its standard error is told as it comes and returned.
func (j *jail) run(ctx context.Context, dir string, out *reporter, step string, args ...string) (stdout []byte, stderr string, err error) {
	cmd := exec.CommandContext(ctx, "/goroot/bin/go", args...)
	cmd.Dir, cmd.Env = dir, j.env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: j.root, Setpgid: true,
		Credential: &syscall.Credential{Uid: compiler, Gid: compiler},
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var buffer bytes.Buffer
	cmd.Stdout = &buffer
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return nil, "", fmt.Errorf("running the go command: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("running the go command: %w", err)
	}
	var text strings.Builder
	scanner := bufio.NewScanner(pipe)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		out.say(job.Event{Type: job.Log, Step: step, Text: scanner.Text(), Stderr: true})
		if text.Len() < maxOutput {
			text.WriteString(scanner.Text() + "\n")
		}
	}
	_, _ = io.Copy(io.Discard, pipe) // after a line that is too long
	err = cmd.Wait()
	return buffer.Bytes(), text.String(), err
}
