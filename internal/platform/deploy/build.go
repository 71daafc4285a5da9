package deploy

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/container/gobuild"
)

// build makes the image of a request and returns its reference with digest.
func (e *Engine) build(ctx context.Context, req *Request) (string, error) {
	if req.Tree == nil && (req.Spec.Build == nil || req.Spec.Build.Git == nil) {
		return "", failure(CodeUsage, "NoSource", "there is neither an image nor source for %s", req.App)
	}
	if registry := req.registry(); registry != "" {
		return e.buildOutside(ctx, req, registry)
	}
	if err := e.cluster.checkRegistry(ctx); err != nil {
		return "", err
	}
	if arch, can := e.compilesHere(ctx, req); can {
		return e.compile(ctx, req, arch, func(archive *os.File) (string, int64, error) {
			return e.cluster.pushArchive(ctx, req.key(), archive)
		})
	}
	build := &v1alpha1.Build{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Build"},
		ObjectMeta: metav1.ObjectMeta{Namespace: req.Project, Name: req.App + "-" + req.Spec.Source.ID, Labels: map[string]string{v1alpha1.LabelApp: req.App}},
		Spec:       v1alpha1.BuildSpec{App: req.App, Kind: req.Kind, Path: req.Main, Commit: req.Spec.Source.Commit},
	}
	if source := req.Spec.Build; source != nil {
		build.Spec.Git, build.Spec.Dockerfile, build.Spec.Args, build.Spec.Secrets = source.Git, source.Dockerfile, source.Args, source.Secrets
		if source.Path != "" && source.Path != "." {
			build.Spec.Path = filepath.ToSlash(filepath.Join(source.Path, req.Main))
		}
	}
	if req.Tree != nil {
		digest, err := e.upload(ctx, req)
		if err != nil {
			return "", err
		}
		build.Spec.Source = digest
		build.Spec.Time = &metav1.Time{Time: req.Tree.Time}
	}
	err := e.cluster.Client.Create(ctx, build, client.FieldOwner(ManagerDeploy))
	switch {
	case isUnknownKind(err):
		return "", failure(CodeOther, "NoPlatform", "this cluster does not build").try("deploy an image instead", "gantry platform install")
	case apierrors.IsNotFound(err):
		return "", failure(CodeUsage, "NoProject", "there is no project %s", req.Project).try("gantry project create " + req.Project)
	case err != nil:
		return "", Reached("ask for a build", err)
	}
	image, err := e.followBuild(ctx, build)
	if err == nil && build.Spec.Git != nil {
		req.Spec.Source.Commit = build.Status.Commit
		AddProcesses(&req.Spec, build.Status.Processes)
	}
	return image, err
}

// AddProcesses adds what a Procfile names to a spec. The file goes before it.
func AddProcesses(spec *v1alpha1.AppSpec, found map[string]string) {
	if len(found) == 0 {
		return
	}
	processes := maps.Clone(spec.Processes)
	if processes == nil {
		processes = map[string]v1alpha1.Process{}
	}
	for name, command := range found {
		if name == "release" {
			if spec.Release == nil {
				spec.Release = &v1alpha1.ReleaseCommand{Command: command}
			}
			continue
		}
		process := processes[name]
		process.Command = cmp.Or(process.Command, command)
		processes[name] = process
	}
	spec.Processes = processes
}

// GitOrigin is where an application comes from that is built of a repository.
func GitOrigin(source *v1alpha1.BuildSource) string {
	if folder := path.Clean(source.Path); source.Path != "" && folder != "." {
		return source.Git.URL + "//" + folder
	}
	return source.Git.URL
}

// compilesHere says whether this machine can compile the source for the cluster's nodes, and for which architecture.
func (e *Engine) compilesHere(ctx context.Context, req *Request) (arch string, can bool) {
	if !req.Local || !req.compiles() {
		return "", false
	}
	return e.nodesArch(ctx)
}

// compiles says whether the source needs nothing but the go command, and this machine has that.
func (r *Request) compiles() bool {
	if r.Tree == nil || r.Kind != v1alpha1.KindGo {
		return false
	}
	if b := r.Spec.Build; b != nil && (len(b.Args) > 0 || len(b.Secrets) > 0 || b.Git != nil) {
		return false
	}
	_, err := exec.LookPath("go")
	return err == nil
}

// nodesArch is the architecture of all nodes, if they have one.
func (e *Engine) nodesArch(ctx context.Context) (arch string, known bool) {
	var nodes corev1.NodeList
	if err := e.cluster.Client.List(ctx, &nodes); err != nil || len(nodes.Items) == 0 {
		return "", false // who may not see nodes leaves it to the server
	}
	for _, node := range nodes.Items {
		now := node.Status.NodeInfo.Architecture
		if now == "" || (arch != "" && arch != now) {
			return "", false
		}
		arch = now
	}
	return arch, true
}

// compile builds a Go program on this machine and pushes its image, a docker archive. push returns the image's reference and how much
// was sent.
func (e *Engine) compile(ctx context.Context, req *Request, arch string, push func(archive *os.File) (string, int64, error)) (string, error) {
	done := e.step("compile", "compiling on this machine for linux/%s", arch)
	archive, err := os.CreateTemp("", "gantry-image-")
	if err != nil {
		return "", fmt.Errorf("make a temporary file: %w", err)
	}
	defer func() { _ = archive.Close(); _ = os.Remove(archive.Name()) }()
	folder := filepath.Join(req.Tree.Folder, filepath.FromSlash(req.Main))
	if b := req.Spec.Build; b != nil {
		folder = filepath.Join(req.Tree.Folder, filepath.FromSlash(b.Path), filepath.FromSlash(req.Main))
	}
	result, err := gobuild.Build(ctx, gobuild.Options{Dir: folder, Arch: arch, Progress: io.Discard}, archive)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if compiler, ok := errors.AsType[*gobuild.CompileError](err); ok {
		return "", &Error{Code: CodeBuild, Reason: "BuildFailed", Message: "compile " + compiler.Package, Log: compiler.Output}
	}
	if err != nil {
		return "", &Error{Code: CodeBuild, Reason: "BuildFailed", Err: err}
	}
	done("compiled, %s", megabytes(result.SizeBytes))
	done = e.step("upload", "pushing the image")
	image, sent, err := push(archive)
	if err != nil {
		return "", err
	}
	done("pushed the image, %s sent", megabytes(sent))
	return image, nil
}

// upload packs the source and sends it, unless the registry has it already.
func (e *Engine) upload(ctx context.Context, req *Request) (string, error) {
	done := e.step("upload", "packing %d files, %s", len(req.Tree.Entries), megabytes(req.Tree.Bytes))
	archive, err := os.CreateTemp("", "gantry-source-")
	if err != nil {
		return "", fmt.Errorf("make a temporary file: %w", err)
	}
	defer func() { _ = archive.Close(); _ = os.Remove(archive.Name()) }()
	hash := sha256.New()
	if err := req.Tree.Archive(ctx, io.MultiWriter(archive, hash)); err != nil {
		return "", err
	}
	size, err := archive.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("pack the source: %w", err)
	}
	digest := "sha256:" + hex.EncodeToString(hash.Sum(nil))
	sent, err := e.cluster.pushBlob(ctx, req.key(), digest, size, func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(archive, 0, size)), nil
	})
	if err != nil {
		return "", err
	}
	if sent {
		done("sent the source, %s", megabytes(size))
	} else {
		done("the source is there already")
	}
	return digest, nil
}

// followBuild waits for the end of a build and passes its log on. A caller that goes away cancels it: nobody would use its image.
func (e *Engine) followBuild(ctx context.Context, build *v1alpha1.Build) (image string, err error) {
	done := e.step("build", "building")
	logCtx, stopLog := context.WithCancel(ctx)
	logEnded := make(chan struct{})
	var tail tailLines
	go func() {
		defer close(logEnded)
		e.buildLog(logCtx, build, &tail)
	}()
	defer func() { stopLog(); <-logEnded }()
	defer func() {
		if ctx.Err() != nil {
			e.cancelBuild(context.WithoutCancel(ctx), build)
		}
	}()
	key := client.ObjectKeyFromObject(build)
	step := ""
	err = e.cluster.Await(ctx, build.Namespace, func() (bool, error) {
		if err := e.cluster.Client.Get(ctx, key, build); err != nil {
			return false, Reached("ask about the build", err)
		}
		if now := strings.TrimSpace(build.Status.Phase + " " + build.Status.Step); now != step {
			step = now
			e.emit(Event{Type: EventStep, Step: "build", Phase: build.Status.Phase, Text: buildText(build)})
		}
		switch build.Status.Phase {
		case v1alpha1.BuildSucceeded, v1alpha1.BuildFailed, v1alpha1.BuildCanceled:
			return true, nil
		}
		return false, nil
	}, &v1alpha1.BuildList{})
	if err != nil {
		return "", err
	}
	select { // the last lines come after the status, or not at all
	case <-logEnded:
	case <-time.After(2 * time.Second):
	}
	if build.Status.Phase != v1alpha1.BuildSucceeded {
		stopLog()
		<-logEnded
		out := failure(CodeBuild, "Build"+build.Status.Phase, "the build %s", strings.ToLower(build.Status.Phase))
		if build.Status.Message != "" {
			out.Message += ": " + build.Status.Message
		}
		out.Log = tail.String()
		return "", out.try("the running release was left alone")
	}
	done("built %s", build.Status.Image)
	return build.Status.Image, nil
}

func buildText(build *v1alpha1.Build) string {
	switch {
	case build.Status.Phase == "" || build.Status.Phase == v1alpha1.BuildWaiting:
		return "waiting for a builder"
	case build.Status.Step != "":
		return build.Status.Step
	case build.Status.Found != "":
		return "building (" + build.Status.Found + ")"
	}
	return "building"
}

func (e *Engine) cancelBuild(ctx context.Context, build *v1alpha1.Build) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cancel":true}}`))
	if err := e.cluster.Client.Patch(ctx, build, patch, client.FieldOwner(ManagerDeploy)); err != nil {
		e.warn("the build %s could not be cancelled: %v", build.Name, err)
	}
}

// logLine is a line of a build's log.
type logLine struct {
	Type string `json:"type"`
	Step string `json:"step"`
	Text string `json:"text"`
}

// buildLog passes on the log of a build. It is there once the builder began.
func (e *Engine) buildLog(ctx context.Context, build *v1alpha1.Build, tail *tailLines) {
	log := fmt.Sprintf("/apis/build.gantry.dev/v1alpha1/namespaces/%s/builds/%s/log?follow=true", build.Namespace, build.Name)
	for range 100 {
		body, err := e.cluster.Open(ctx, log)
		if err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
				continue
			}
		}
		defer func() { _ = body.Close() }()
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var line logLine
			if json.Unmarshal(lines.Bytes(), &line) != nil || line.Text == "" {
				continue
			}
			for text := range strings.SplitSeq(strings.TrimRight(line.Text, "\n"), "\n") {
				tail.add(text)
				e.emit(Event{Type: EventLog, Step: "build", Text: text})
			}
		}
		return
	}
}

// tailLines keeps the last lines of a log. It belongs to one goroutine at a time.
type tailLines struct{ lines []string }

// maxTail is how many lines an error shows.
const maxTail = 20

func (t *tailLines) add(line string) {
	t.lines = append(t.lines, line)
	if len(t.lines) > maxTail {
		t.lines = t.lines[1:]
	}
}

func (t *tailLines) String() string { return strings.Join(t.lines, "\n") }

func megabytes(bytes int64) string {
	if bytes < 1e6 {
		return fmt.Sprintf("%.1f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
}
