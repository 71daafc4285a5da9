package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/network/podnet"
	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/platform/build/job"
	"gantry.dev/gantry/internal/programs"
)

// What the builder is in the cluster.
const (
	builderRole = "gantry:builder"
	builderUser = "system:gantry:build"
	imagesGroup = "registry.gantry.dev"
)

// buildsPart runs Builds on this node.
type buildsPart struct {
	node   *node
	user   user.Info
	engine *build.Engine
	// controller makes one; it is good for one term.
	controller func() (*build.Controller, error)
}

// buildBuilds wires the engine and the controller of builds. Nothing of it is started before a Build is there.
func (n *node) buildBuilds() error {
	program, err := n.opts.programs.Path(programs.Build)
	if err != nil {
		return err
	}
	runc, err := n.opts.programs.Path(programs.Runc)
	if err != nil {
		return err
	}
	c := n.opts.config
	network := &buildNetwork{network: n.network, options: podNetworkOptions(c, netip.Prefix{}, n.opts.logger), ranges: func(ctx context.Context) []string {
		if obj := n.opts.cluster.node(ctx); obj != nil {
			return obj.Spec.PodCIDRs
		}
		return nil
	}}
	static, err := n.opts.programs.Path(programs.Static)
	if err != nil {
		return err
	}
	engine, err := build.NewEngine(build.EngineOptions{
		Prepare: func() error { return n.opts.programs.Unpack(programs.Build, programs.Static) },
		Program: program, Runc: runc, Static: static, Dir: c.Path("build"), RunDir: c.Path("run"),
		Bases: c.BuildBases, Network: network, DNS: []string{podnet.DNSAddr(c.ServiceCIDR).String()}, Log: n.opts.logger,
	})
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("knowing the kinds of builds: %w", err)
	}
	u := &user.DefaultInfo{Name: builderUser, Groups: []string{user.AllAuthenticated}}
	reader, informers, err := n.opts.controlPlane.as(client.Options{User: u, Lister: u, Manager: "gantry-build", Scheme: scheme}, nil)
	if err != nil {
		return err
	}
	controller := func() (*build.Controller, error) {
		return build.New(reader, informers, build.Options{
			Builder: engine, Images: n.buildImages, LogDir: c.Path("log", "builds"), DiskDir: c.DataDir,
			Node: n.opts.identity.Name, Log: n.opts.logger,
		})
	}
	logs, err := controller() // serves those of earlier terms, too
	if err != nil {
		return err
	}
	n.images.builds = func(ctx context.Context) (int64, error) {
		if entries, err := os.ReadDir(c.Path("build")); err != nil || len(entries) == 0 {
			return 0, nil //nolint:nilerr // nothing was ever built here: no engine is started to hear that
		}
		freed, err := engine.Prune(ctx)
		return freed.Bytes, err
	}
	n.builds = &buildsPart{node: n, user: u, engine: engine, controller: controller}
	n.opts.controlPlane.buildLogs.Store(logs)
	return nil
}

// Run builds until ctx ends.
func (b *buildsPart) Run(ctx context.Context) error {
	return runAll(ctx, b.engine.Run, func(ctx context.Context) error {
		cp := b.node.opts.controlPlane
		if err := cp.bootstrapBuilds(ctx); err != nil {
			return nil // ctx has ended
		}
		select {
		case <-ctx.Done():
			return nil
		case <-cp.Platform():
		}
		if err := cp.awaitRight(ctx, b.user, v1alpha1.Group, "builds"); err != nil {
			return err
		}
		return b.lead(ctx)
	})
}

// lead runs Builds while this server leads: of several servers one builds, and what it does not finish the next one begins
// again.
func (b *buildsPart) lead(ctx context.Context) error {
	cp := b.node.opts.controlPlane
	for ctx.Err() == nil {
		leading, changed := cp.Leading()
		if !leading {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		controller, err := b.controller()
		if err != nil {
			return err
		}
		cp.buildLogs.Store(controller)
		if err := during(ctx, changed, controller.Run); err != nil {
			return err
		}
	}
	return nil
}

// during runs f until over is closed.
func during(ctx context.Context, over <-chan struct{}, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() {
		select {
		case <-over:
			cancel()
		case <-ctx.Done():
		}
	})
	return f(ctx)
}

// bootstrapBuilds gives the builder its rights.
func (cp *ControlPlane) bootstrapBuilds(ctx context.Context) error {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: builderRole}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{v1alpha1.Group}, Resources: []string{"builds"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{v1alpha1.Group}, Resources: []string{"builds/status"}, Verbs: []string{"get", "patch", "update"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}},
		{APIGroups: []string{imagesGroup}, Resources: []string{"images"}, Verbs: []string{"get", "create"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: builderRole},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: builderRole},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: builderUser}},
	}
	return cp.insist(ctx, "giving the builder its rights", func() error {
		if err := cp.ensure(ctx, role); err != nil {
			return err
		}
		return cp.ensure(ctx, binding)
	})
}

// buildImages is what the builds of a project may read and write: the registry with their rights, and images that somebody
// loaded on this node.
func (n *node) buildImages(namespace, _ string) build.Images {
	return build.Images{
		Registry: n.opts.controlPlane.buildRegistry(namespace),
		Node: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.runtime.ServeLoaded(w, r, strings.TrimPrefix(r.URL.Path, job.NodePath+"/"))
		}),
	}
}

// buildRegistry is the registry as the builds of a project may use it: they write to their project and read what its default
// service account may read.
func (cp *ControlPlane) buildRegistry(namespace string) http.Handler {
	builder := &user.DefaultInfo{Name: builderUser, Groups: []string{user.AllAuthenticated}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		project, app := projectOf(r.URL.Path)
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if project != "" && project != namespace && (!reads || !cp.mayPull(r.Context(), namespace, project, app)) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"builds of project %s may not use images of project %s"}]}`, namespace, project)
			return
		}
		if from := r.URL.Query().Get("from"); from != "" && !strings.HasPrefix(from, namespace+"/") {
			query := r.URL.Query() // a mount from elsewhere becomes an upload
			query.Del("from")
			query.Del("mount")
			r.URL.RawQuery = query.Encode()
		}
		inner := r.Clone(auth.InProcess(r.Context(), builder))
		inner.RemoteAddr, inner.Host = "", job.RegistryHost
		inner.Header.Del("Authorization")
		cp.handler.ServeHTTP(w, inner)
	})
}

// projectOf is the project and the application of a path below /v2/; "" for /v2/ itself.
func projectOf(path string) (project, app string) {
	project, rest, _ := strings.Cut(strings.TrimPrefix(path, "/v2/"), "/")
	app, _, _ = strings.Cut(rest, "/")
	return project, app
}

// mayPull asks whether the default account of a project may read an image of another.
func (cp *ControlPlane) mayPull(ctx context.Context, namespace, project, app string) bool {
	groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, user.AllAuthenticated}
	decision, _, err := cp.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
		User: &user.DefaultInfo{Name: "system:serviceaccount:" + namespace + ":default", Groups: groups},
		Verb: "get", APIGroup: imagesGroup, APIVersion: "v1", Resource: "images", Namespace: project, Name: app, ResourceRequest: true,
	})
	return err == nil && decision == authorizer.DecisionAllow
}

// buildLogPrefix is below what the logs of builds are served; no other group serves anything there.
const buildLogPrefix = "/apis/build.gantry.dev/v1alpha1/namespaces/"

// withBuildLogs serves the logs of builds to those who may get builds/log, and passes all else on.
func (cp *ControlPlane) withBuildLogs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, buildLogPrefix)
		logs := cp.buildLogs.Load()
		parts := strings.Split(rest, "/")
		if !ok || logs == nil || r.Method != http.MethodGet || len(parts) != 4 || parts[1] != "builds" || parts[3] != "log" {
			next.ServeHTTP(w, r)
			return
		}
		response, known, err := cp.authn.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		decision, _, err := cp.authorizer.Authorize(r.Context(), &authorizer.AttributesRecord{
			User: response.User, Verb: "get", APIGroup: v1alpha1.Group, APIVersion: "v1alpha1", Resource: "builds", Subresource: "log",
			Namespace: parts[0], Name: parts[2], ResourceRequest: true, Path: r.URL.Path,
		})
		if err != nil || decision != authorizer.DecisionAllow {
			http.Error(w, fmt.Sprintf("user %q may not get builds/log of %s in %s", response.User.GetName(), v1alpha1.Group, parts[0]), http.StatusForbidden)
			return
		}
		if other := cp.builtAt(r.Context(), parts[0], parts[2]); other != nil {
			other.ServeHTTP(w, r)
			return
		}
		logs.ServeLog(w, r, types.NamespacedName{Namespace: parts[0], Name: parts[2]})
	})
}

// buildNetwork is a pod's network, kept away from the node and the cluster.
type buildNetwork struct {
	network *networkPart
	options podnet.Options                 // for the rules alone, which know the cluster's ranges and not the node's
	ranges  func(context.Context) []string // of this node's pods; a build may be the first
}

var _ build.Network = (*buildNetwork)(nil)

// buildNetworkUID is a UID that no pod has.
const buildNetworkUID = "gantry-build"

// Setup implements build.Network.
func (b *buildNetwork) Setup(ctx context.Context) (string, error) {
	path, addrs, err := b.network.Setup(ctx, buildNetworkUID, &corev1.Pod{}, b.ranges(ctx))
	if err != nil {
		return "", err
	}
	if err := podnet.Isolate(ctx, b.options, addrs[0]); err != nil {
		return "", errors.Join(err, b.network.Teardown(ctx, buildNetworkUID))
	}
	return path, nil
}

// Teardown implements build.Network. Before the network is made there is nothing of it but rules.
func (b *buildNetwork) Teardown(ctx context.Context) error {
	err := b.network.Teardown(ctx, buildNetworkUID)
	if errors.Is(err, errNoPodCIDR) {
		err = nil
	}
	return errors.Join(err, podnet.Isolate(ctx, b.options, netip.Addr{}))
}
