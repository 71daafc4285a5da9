package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/deploy/deploytest"
	"gantry.dev/gantry/internal/platform/source"
)

// recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []deploy.Event
	on     func(deploy.Event)
}

func (r *recorder) add(e deploy.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	if r.on != nil {
		r.on(e)
	}
}

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.events {
		b.WriteString(e.Type + " " + e.Text + "\n")
	}
	return b.String()
}

func engine(t *testing.T, p *deploytest.Platform) (*deploy.Engine, *recorder) {
	t.Helper()
	r := &recorder{}
	e, err := deploy.New(deploy.Options{Cluster: p.Cluster, Sink: r.add})
	if err != nil {
		t.Fatal(err)
	}
	return e, r
}

func image(app, image string) deploy.Request {
	return deploy.Request{Project: "default", App: app, Timeout: 30 * time.Second, Spec: v1alpha1.AppSpec{
		Image: image, Source: &v1alpha1.Source{Origin: "laptop:/shop", Reason: "deploy"},
	}}
}

// deploys runs a request and checks how it ended.
func deploys(t *testing.T, e *deploy.Engine, request deploy.Request, want deploy.Code) (deploy.Result, error) {
	t.Helper()
	result, err := e.Deploy(t.Context(), request)
	got := deploy.Code(0)
	if failed, ok := errors.AsType[*deploy.Error](err); ok {
		got = failed.Code
	} else if err != nil {
		got = deploy.CodeOther
	}
	if got != want {
		t.Fatalf("%s with %s ended with %d, want %d: %v", request.App, request.Spec.Image, got, want, err)
	}
	return result, err
}

func TestDeploy(t *testing.T) {
	p := deploytest.Start(t)
	t.Run("image", func(t *testing.T) { testImage(t, p) })
	t.Run("failures", func(t *testing.T) { testFailures(t, p) })
	t.Run("checks", func(t *testing.T) { testChecks(t, p) })
	t.Run("build", func(t *testing.T) { testBuild(t, p) })
	t.Run("git", func(t *testing.T) { testGit(t, p) })
	t.Run("compile", func(t *testing.T) { testCompile(t, p) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, p) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, p) })
	t.Run("canary", func(t *testing.T) { testCanary(t, p) })
	t.Run("plan", func(t *testing.T) { testPlan(t, p) })
}

func testImage(t *testing.T, p *deploytest.Platform) {
	e, r := engine(t, p)
	result, _ := deploys(t, e, image("shop", "shop:1"), 0)
	if result.Release != 1 || result.Phase != v1alpha1.ReleaseLive || len(result.URLs) != 1 {
		t.Errorf("result is %+v", result)
	}
	if text := r.text(); !strings.Contains(text, "v1 starts") || !strings.HasSuffix(text, "done v1 is live\n") {
		t.Errorf("events:\n%s", text)
	}
	if again, _ := deploys(t, e, image("shop", "shop:1"), 0); again.Release != 1 || !again.Unchanged {
		t.Errorf("the same again is %+v", again)
	}
	if _, err := p.Cluster.ChangeApp(t.Context(), types.NamespacedName{Namespace: "default", Name: "shop"}, deploy.ManagerEnv, func(a *v1alpha1.App) error {
		a.Spec.Config = map[string]string{"LOG": "debug"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	deploys(t, e, image("shop", "shop:2"), 0)
	app, err := p.Cluster.App(t.Context(), types.NamespacedName{Namespace: "default", Name: "shop"})
	if err != nil || app.Spec.Config["LOG"] != "debug" || app.Spec.Image != "shop:2" {
		t.Errorf("a deploy leaves env set alone: %+v, %v", app.Spec, err)
	}
}

func testFailures(t *testing.T, p *deploytest.Platform) {
	e, _ := engine(t, p)
	deploys(t, e, image("bad", "fine:1"), 0)
	_, err := deploys(t, e, image("bad", "crash:1"), deploy.CodeUnhealthy)
	for _, want := range []string{"v2 of bad failed: web ended three times", "  | panic: boom", "→ v1 still serves"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	again, _ := deploys(t, e, image("bad", "crash:1"), deploy.CodeUnhealthy)
	if again.Release != 3 {
		t.Errorf("a failed release is tried again as a new one, got v%d", again.Release)
	}
	deploys(t, e, image("bad", "migratefails:1"), deploy.CodeCheck)
	slow := image("bad", "hang:1")
	slow.Timeout = 2 * time.Second
	if _, err := deploys(t, e, slow, deploy.CodeTimeout); !strings.Contains(err.Error(), "v5 of bad is still on its way: v5 starts: web 0/1 ready") {
		t.Errorf("time-out: %v", err)
	}
}

func testChecks(t *testing.T, p *deploytest.Platform) {
	e, r := engine(t, p)
	request := image("checked", "shop:1")
	request.Spec.Secrets = []string{"B_KEY", "A_KEY"}
	if _, err := deploys(t, e, request, deploy.CodeCheck); !strings.Contains(err.Error(), "the secrets A_KEY, B_KEY of checked: not set\n→ gantry secret set A_KEY -a checked -p default < FILE") {
		t.Errorf("missing secrets: %v", err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "checked-secrets"}, StringData: map[string]string{"A_KEY": "a", "B_KEY": "b"}}
	if err := p.Cluster.Client.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	deploys(t, e, request, 0)
	request.Spec.Source.Origin = "git@example.com:acme/other.git"
	if _, err := deploys(t, e, request, deploy.CodeCheck); !strings.Contains(err.Error(), "checked in project default comes from laptop:/shop, and this is git@example.com:acme/other.git") {
		t.Errorf("another origin: %v", err)
	}
	request.TakeOver = true
	deploys(t, e, request, 0)
	request.TakeOver, request.Spec.Source.Origin = false, "https://example.com/acme/other"
	deploys(t, e, request, 0)
	request.Project = "nowhere"
	deploys(t, e, request, deploy.CodeCheck) // no project, so no secrets
	request.Spec.Secrets = nil
	if _, err := deploys(t, e, request, deploy.CodeUsage); !strings.Contains(err.Error(), "there is no project nowhere") {
		t.Errorf("no project: %v", err)
	}
	bad := image("checked", "shop:1")
	bad.TakeOver = true
	bad.Spec.Rollout = &v1alpha1.Rollout{Strategy: "sideways"}
	deploys(t, e, bad, deploy.CodeUsage)
	if strings.Contains(r.text(), "upload") {
		t.Error("something was uploaded though checks failed")
	}
}

func tree(t *testing.T, files map[string]string) *source.Tree {
	t.Helper()
	folder := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	scanned, err := source.Scan(t.Context(), source.Options{Folder: folder, Host: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	return scanned
}

func built(t *testing.T, app string, args map[string]string) deploy.Request {
	t.Helper()
	request := image(app, "")
	request.Tree = tree(t, map[string]string{"Dockerfile": "FROM scratch"})
	request.Kind = v1alpha1.KindDockerfile
	request.Spec.Build = &v1alpha1.BuildSource{Args: args}
	return request
}

func testBuild(t *testing.T, p *deploytest.Platform) {
	e, r := engine(t, p)
	result, _ := deploys(t, e, built(t, "made", nil), 0)
	if !strings.HasPrefix(result.Image, "registry.gantry.internal/default/made@sha256:") {
		t.Errorf("result is %+v", result)
	}
	if text := r.text(); !strings.Contains(text, "done sent the source") || !strings.Contains(text, "log RUN make") {
		t.Errorf("events:\n%s", text)
	}
	deploys(t, e, built(t, "made", nil), 0)
	if !strings.Contains(r.text(), "the source is there already") {
		t.Error("equal source was sent twice")
	}
	if _, err := deploys(t, e, built(t, "made", map[string]string{"FAIL": "1"}), deploy.CodeBuild); !strings.Contains(err.Error(), "the build failed: Dockerfile:3: RUN make ended with 2\n  | RUN make\n→ the running release was left alone") {
		t.Errorf("a failed build: %v", err)
	}
}

// testGit builds of a repository: the release says which commit, and has the processes of its Procfile.
func testGit(t *testing.T, p *deploytest.Platform) {
	e, _ := engine(t, p)
	request := image("fetched", "")
	request.Spec.Build = &v1alpha1.BuildSource{Path: "web", Git: &v1alpha1.GitSource{URL: "https://example.com/acme/shop.git", Ref: "main", Secret: "GIT_TOKEN"}}
	request.Spec.Source.Origin = deploy.GitOrigin(request.Spec.Build)
	if _, err := deploys(t, e, request, deploy.CodeCheck); !strings.Contains(err.Error(), "the secret GIT_TOKEN of fetched: not set") {
		t.Errorf("without the secret: %v", err)
	}
	request.Spec.Build.Git.Secret = ""
	deploys(t, e, request, 0)
	releases, err := p.Cluster.Releases(t.Context(), types.NamespacedName{Namespace: "default", Name: "fetched"})
	if err != nil || len(releases) != 1 {
		t.Fatalf("releases = %+v, %v", releases, err)
	}
	content := releases[0].Spec.Content
	if s := content.Source; s.Commit != strings.Repeat("c", 40) || s.Origin != "https://example.com/acme/shop.git//web" {
		t.Errorf("the release comes from %+v", s)
	}
	if content.Processes["worker"].Command != "./work" || content.Release == nil || content.Release.Command != "./migrate" {
		t.Errorf("the release runs %+v and %+v", content.Processes, content.Release)
	}
	var builds v1alpha1.BuildList
	if err := p.Cluster.Client.List(t.Context(), &builds, client.MatchingLabels{v1alpha1.LabelApp: "fetched"}); err != nil || len(builds.Items) != 1 || builds.Items[0].Spec.Path != "web" || builds.Items[0].Spec.Git.Ref != "main" {
		t.Errorf("builds = %+v, %v", builds.Items, err)
	}
}

func testCompile(t *testing.T, p *deploytest.Platform) {
	var node corev1.Node
	if err := p.Cluster.Client.Get(t.Context(), types.NamespacedName{Name: "node-0"}, &node); err != nil {
		t.Fatal(err)
	}
	node.Status.NodeInfo.Architecture = "amd64"
	if err := p.Cluster.Client.Status().Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	e, r := engine(t, p)
	request := image("compiled", "")
	request.Tree = tree(t, map[string]string{"go.mod": "module example.com/compiled\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n"})
	request.Kind, request.Local = v1alpha1.KindGo, true
	result, _ := deploys(t, e, request, 0)
	_, digest, _ := strings.Cut(result.Image, "@")
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(p.Registry.Content("default/compiled", digest), &manifest); err != nil || len(manifest.Layers) != 2 {
		t.Fatalf("the manifest %s: %+v, %v", digest, manifest, err)
	}
	for _, d := range []string{manifest.Config.Digest, manifest.Layers[0].Digest, manifest.Layers[1].Digest} {
		if !p.Registry.Has("default/compiled", d) {
			t.Errorf("%s was not pushed", d)
		}
	}
	if !strings.Contains(r.text(), "compiling on this machine for linux/amd64") {
		t.Errorf("events:\n%s", r.text())
	}
	request.Tree = tree(t, map[string]string{"go.mod": "module example.com/compiled\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() { x }\n"})
	if _, err := deploys(t, e, request, deploy.CodeBuild); !strings.Contains(err.Error(), "undefined: x") {
		t.Errorf("a compile error: %v", err)
	}
}

func testConcurrent(t *testing.T, p *deploytest.Platform) {
	slow, slowEvents := engine(t, p)
	fast, _ := engine(t, p)
	began := make(chan struct{})
	var once sync.Once
	slowEvents.on = func(e deploy.Event) {
		if e.Type == deploy.EventRelease {
			once.Do(func() { close(began) })
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := slow.Deploy(t.Context(), image("raced", "hang:1"))
		ended <- err
	}()
	<-began
	deploys(t, fast, image("raced", "fine:1"), 0)
	err := <-ended
	if failed, ok := errors.AsType[*deploy.Error](err); !ok || failed.Code != deploy.CodeSuperseded {
		t.Errorf("the earlier deploy ended with %v", err)
	}
}

func testInterrupted(t *testing.T, p *deploytest.Platform) {
	ctx, cancel := context.WithCancel(t.Context())
	e, r := engine(t, p)
	r.on = func(event deploy.Event) {
		if event.Phase == v1alpha1.BuildRunning {
			cancel()
		}
	}
	if _, err := e.Deploy(ctx, built(t, "stopped", map[string]string{"HANG": "1"})); !errors.Is(err, context.Canceled) {
		t.Fatalf("ended with %v", err)
	}
	var builds v1alpha1.BuildList
	if err := p.Cluster.Client.List(t.Context(), &builds); err != nil {
		t.Fatal(err)
	}
	cancelled := false
	for _, b := range builds.Items {
		cancelled = cancelled || (b.Spec.App == "stopped" && b.Spec.Cancel)
	}
	if _, err := p.Cluster.App(t.Context(), types.NamespacedName{Namespace: "default", Name: "stopped"}); !cancelled || !deploy.IsNoApp(err) {
		t.Errorf("the build is cancelled: %v; the application: %v", cancelled, err)
	}
}

func testCanary(t *testing.T, p *deploytest.Platform) {
	e, _ := engine(t, p)
	key := types.NamespacedName{Namespace: "default", Name: "careful"}
	result, _ := deploys(t, e, image("careful", "canary:1"), 0)
	if result.Phase != v1alpha1.ReleaseCanary {
		t.Fatalf("a canary that waits: %+v", result)
	}
	releases, err := p.Cluster.Releases(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	asked := releases[0].DeepCopy()
	asked.Spec.Intent = v1alpha1.IntentPromote
	if err := p.Cluster.Client.Update(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	if result, err := e.FollowIntent(t.Context(), key, asked, 30*time.Second); err != nil || result.Phase != v1alpha1.ReleaseLive {
		t.Errorf("promoted: %+v, %v", result, err)
	}
}

func testPlan(t *testing.T, p *deploytest.Platform) {
	e, _ := engine(t, p)
	before, after, err := e.Plan(t.Context(), image("planned", "shop:1"))
	if err != nil || before != nil || after.Spec.Image != "shop:1" {
		t.Errorf("a plan for a new application: %v, %v, %v", before, after, err)
	}
	if _, err := p.Cluster.App(t.Context(), types.NamespacedName{Namespace: "default", Name: "planned"}); !deploy.IsNoApp(err) {
		t.Errorf("the plan made it: %v", err)
	}
}

func TestSameOrigin(t *testing.T) {
	for _, same := range [][2]string{
		{"git@example.com:acme/shop.git", "https://example.com/acme/shop"}, {"ssh://git@example.com/acme/shop.git", "git@example.com:acme/shop"},
		{"laptop:/home/ann/shop", "laptop:/home/ann/shop"}, {"", "anything"},
	} {
		if !deploy.SameOrigin(same[0], same[1]) {
			t.Errorf("%q and %q are one", same[0], same[1])
		}
	}
	for _, other := range [][2]string{
		{"git@example.com:acme/shop.git", "https://example.com/acme/store"}, {"laptop:/a", "desktop:/a"},
		{"https://example.com/acme/mono.git//a", "https://example.com/acme/mono.git//b"},
	} {
		if deploy.SameOrigin(other[0], other[1]) {
			t.Errorf("%q and %q are two", other[0], other[1])
		}
	}
}
