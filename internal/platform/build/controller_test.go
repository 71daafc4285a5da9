//go:build linux

package build_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/crds"
	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/gantrytest"
	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/platform/build/job"
)

// fakeBuilder builds when it is told to.
type fakeBuilder struct {
	mu       sync.Mutex
	requests []job.Request
	release  chan job.Event // what the next build ends with
}

// Build implements build.Builder.
func (f *fakeBuilder) Build(ctx context.Context, request job.Request, _ build.Images, tell func(job.Event)) (job.Event, error) {
	f.mu.Lock()
	f.requests = append(f.requests, request)
	f.mu.Unlock()
	if request.Git != nil {
		tell(job.Event{Type: job.Commit, Text: "c0ffee"})
	}
	tell(job.Event{Type: job.Found, Kind: "go", Text: "go.mod"})
	tell(job.Event{Type: job.Step, Text: "1/2 compile"})
	select {
	case event := <-f.release:
		tell(event)
		return event, nil
	case <-ctx.Done():
		return job.Event{}, ctx.Err()
	}
}

func (f *fakeBuilder) seen() []job.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]job.Request(nil), f.requests...)
}

// plane is a control plane with a controller of builds that the test starts and stops.
type plane struct {
	t          *testing.T
	cluster    *gantrytest.Cluster
	client     *client.Client
	builder    *fakeBuilder
	controller *build.Controller
	minFree    int // percent of the disk; 0 is next to none
	dir        string
	stop       func()
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{t: t, cluster: gantrytest.Start(t, gantrytest.Options{}), builder: &fakeBuilder{release: make(chan job.Event)}, dir: t.TempDir()}
	text, err := crds.Files.ReadFile("gantry.dev_builds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	definition := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &definition.Object); err != nil {
		t.Fatal(err)
	}
	if err := p.cluster.Client.Create(t.Context(), definition); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	p.client, err = client.New(client.Options{
		Registry: p.cluster.ControlPlane.Registry(), Scheme: scheme, Manager: "test",
		User: &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.cluster.Eventually("Builds are served", func() error { return p.client.List(t.Context(), &v1alpha1.BuildList{}) })
	p.start()
	return p
}

func (p *plane) start() {
	p.t.Helper()
	informers := client.NewCache(p.client, client.CacheOptions{})
	controller, err := build.New(p.client, informers, build.Options{
		Builder: p.builder, Images: func(string, string) build.Images { return build.Images{} }, LogDir: p.dir, DiskDir: "/", Node: "n1", MinFree: max(p.minFree, 1),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.controller = controller
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = informers.Start(ctx) })
	running.Go(func() {
		if err := controller.Run(ctx); err != nil {
			p.t.Errorf("Run: %v", err)
		}
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	p.t.Cleanup(p.stop)
}

func (p *plane) create(name string, change func(*v1alpha1.Build)) {
	p.t.Helper()
	b := &v1alpha1.Build{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1alpha1.BuildSpec{App: "web", Source: "sha256:" + strings.Repeat("a", 64)}}
	if change != nil {
		change(b)
	}
	if err := p.client.Create(p.t.Context(), b); err != nil {
		p.t.Fatal(err)
	}
}

// is waits until the status of a Build is as want says.
func (p *plane) is(name string, want func(v1alpha1.BuildStatus) bool) v1alpha1.BuildStatus {
	p.t.Helper()
	obj := &v1alpha1.Build{}
	p.cluster.Eventually("Build "+name, func() error {
		if err := p.client.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, obj); err != nil {
			return err
		}
		if !want(obj.Status) {
			text, _ := json.Marshal(obj.Status)
			return errors.New("its status is " + string(text))
		}
		return nil
	})
	return obj.Status
}

func phase(want string) func(v1alpha1.BuildStatus) bool {
	return func(s v1alpha1.BuildStatus) bool { return s.Phase == want }
}

func TestController(t *testing.T) {
	p := newPlane(t)
	p.create("one", nil)
	p.is("one", func(s v1alpha1.BuildStatus) bool {
		return s.Phase == v1alpha1.BuildRunning && s.Kind == "go" && s.Found == "go.mod" && s.Node == "n1" && s.Started != nil
	})
	p.create("two", func(b *v1alpha1.Build) { b.Spec.Secrets = []string{"TOKEN"} })
	p.is("two", phase(v1alpha1.BuildWaiting)) // it is in the queue before the next
	p.create("three", nil)
	p.is("three", phase(v1alpha1.BuildWaiting))
	if n := len(p.builder.seen()); n != 1 {
		t.Errorf("%d builds run at once, want 1", n)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.controller.ServeLog(w, r, types.NamespacedName{Namespace: "default", Name: r.URL.Query().Get("name")})
	}))
	defer server.Close()
	followed := make(chan string, 1)
	go func() {
		response, err := http.Get(server.URL + "?name=one&follow=true")
		if err != nil {
			followed <- err.Error()
			return
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		followed <- string(text)
	}()
	image := "registry.gantry.internal/default/web@sha256:" + strings.Repeat("b", 64)
	p.builder.release <- job.Event{Type: job.Done, Image: image}
	if s := p.is("one", phase(v1alpha1.BuildSucceeded)); s.Image != image || s.Finished == nil {
		t.Errorf("status = %+v, want the image", s)
	}
	if text := <-followed; strings.Count(text, "\n") != 3 || !strings.Contains(text, image) {
		t.Errorf("the followed log is %q", text)
	}
	if s := p.is("two", phase(v1alpha1.BuildFailed)); !strings.Contains(s.Message, "gantry secret set -a web TOKEN") {
		t.Errorf("message = %q, want what to do about the secret", s.Message)
	}
	p.is("three", phase(v1alpha1.BuildRunning))
	p.builder.release <- job.Event{Type: job.Failed, Text: "Dockerfile:3: RUN false: exit code 1", File: "Dockerfile", Line: 3, Exit: 1}
	if s := p.is("three", phase(v1alpha1.BuildFailed)); s.Message != "Dockerfile:3: RUN false: exit code 1" {
		t.Errorf("message = %q", s.Message)
	}
}

func TestControllerCancel(t *testing.T) {
	p := newPlane(t)
	p.create("running", nil)
	p.is("running", phase(v1alpha1.BuildRunning))
	p.create("waiting", nil)
	p.is("waiting", phase(v1alpha1.BuildWaiting))
	for _, name := range []string{"waiting", "running"} {
		b := &v1alpha1.Build{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		if err := p.client.Patch(t.Context(), b, ctrlclient.RawPatch(types.MergePatchType, []byte(`{"spec":{"cancel":true}}`))); err != nil {
			t.Fatal(err)
		}
		p.is(name, phase(v1alpha1.BuildCanceled))
	}
}

// TestControllerRestart begins a build again that was running when the process ended.
func TestControllerRestart(t *testing.T) {
	p := newPlane(t)
	p.create("one", nil)
	p.is("one", phase(v1alpha1.BuildRunning))
	p.stop()
	p.is("one", phase(v1alpha1.BuildRunning))
	p.start()
	select {
	case p.builder.release <- job.Event{Type: job.Done, Image: "registry.gantry.internal/default/web@sha256:x"}:
	case <-time.After(30 * time.Second):
		t.Fatal("the build was not begun again")
	}
	p.is("one", phase(v1alpha1.BuildSucceeded))
	if n := len(p.builder.seen()); n != 2 {
		t.Errorf("the builder was asked %d times, want 2", n)
	}
}

// TestControllerGit hands the builder the repository with the credentials of a secret, and shows the commit.
func TestControllerGit(t *testing.T) {
	p := newPlane(t)
	git := func(secret string) func(*v1alpha1.Build) {
		return func(b *v1alpha1.Build) {
			b.Spec.Source, b.Spec.Git = "", &v1alpha1.GitSource{URL: "https://example.com/shop.git", Ref: "main", Secret: secret}
		}
	}
	p.create("none", git("GIT_TOKEN"))
	if s := p.is("none", phase(v1alpha1.BuildFailed)); !strings.Contains(s.Message, "gantry secret set -a web GIT_TOKEN") {
		t.Errorf("message = %q, want what to do about the secret", s.Message)
	}
	p.create("both", func(b *v1alpha1.Build) { b.Spec.Git = &v1alpha1.GitSource{URL: "https://example.com/shop.git"} })
	if s := p.is("both", phase(v1alpha1.BuildFailed)); !strings.Contains(s.Message, "want one of spec.source") {
		t.Errorf("message = %q", s.Message)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: v1alpha1.SecretName("web")}, Data: map[string][]byte{"TOKEN": []byte("t0ken\n"), "PAIR": []byte("ann:s3:cret")}}
	if err := p.client.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]job.Git{
		"":      {URL: "https://example.com/shop.git", Ref: "main"},
		"TOKEN": {URL: "https://example.com/shop.git", Ref: "main", User: "git", Password: "t0ken"},
		"PAIR":  {URL: "https://example.com/shop.git", Ref: "main", User: "ann", Password: "s3:cret"},
	} {
		build := "with-" + strings.ToLower(name) + "x"
		p.create(build, git(name))
		if s := p.is(build, func(s v1alpha1.BuildStatus) bool { return s.Commit != "" }); s.Commit != "c0ffee" {
			t.Errorf("status = %+v, want the commit", s)
		}
		seen := p.builder.seen()
		if got := seen[len(seen)-1]; got.Git == nil || *got.Git != want || got.Source != "" {
			t.Errorf("the builder was asked for %+v of %+v, want %+v", got, got.Git, want)
		}
		p.builder.release <- job.Event{Type: job.Failed, Text: "x"}
		p.is(build, phase(v1alpha1.BuildFailed))
	}
}

// TestControllerNoRoom refuses when the disk is nearly full, and says what to do.
func TestControllerNoRoom(t *testing.T) {
	var disk unix.Statfs_t
	if err := unix.Statfs("/", &disk); err != nil || disk.Bavail*100/disk.Blocks >= 99 {
		t.Skipf("the disk is empty: %v", err)
	}
	p := newPlane(t)
	p.stop()
	p.minFree = 99
	p.start()
	p.create("one", nil)
	if s := p.is("one", phase(v1alpha1.BuildFailed)); !strings.Contains(s.Message, "less than 99 %: \"gantry image prune\" removes images") {
		t.Errorf("message = %q", s.Message)
	}
	if n := len(p.builder.seen()); n != 0 {
		t.Errorf("the builder was asked %d times", n)
	}
}
