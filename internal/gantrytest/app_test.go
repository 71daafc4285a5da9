package gantrytest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/platform/app"
)

// platformTest is a control plane with applications, and nodes whose pods do as their image says: "crash" ends at once,
// "missing" cannot be pulled, "deaf" listens on the loopback address, "hang" never becomes ready, "other" listens on
// port 3000; everything else runs well. A command "fail" fails.
type platformTest struct {
	*Cluster
	t      *testing.T
	apps   ctrlclient.Client
	counts *countsFake

	mu      sync.Mutex
	started map[string]int // pods of Jobs that ever ran, by Job
}

// countsFake counts requests as a test says.
type countsFake struct {
	mu     sync.Mutex
	counts map[string]app.Counts
}

func (f *countsFake) Counts(_ context.Context, _, service string) (app.Counts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[service], nil
}

func (f *countsFake) add(service string, requests, errors int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts[service]
	c.Requests, c.Errors = c.Requests+requests, c.Errors+errors
	f.counts[service] = c
}

// logsFake is the log of every container.
type logsFake struct{}

func (logsFake) Tail(context.Context, string, string, bool) (string, error) { return "panic: no", nil }

// inPlatform runs f on a control plane whose controller of applications crashes after so many writes; 0 is never.
func inPlatform(t *testing.T, crashEvery int, f func(p *platformTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 2, WithoutControllers: []string{"gantry-app", "node-controller"}})
		defer c.Stop()
		<-c.ControlPlane.Platform()
		admin := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}
		apps, _, err := c.ControlPlane.AsPlatform(admin, "test")
		if err != nil {
			t.Fatal(err)
		}
		account := &user.DefaultInfo{Name: "system:serviceaccount:gantry-system:gantry-app", Groups: []string{"system:serviceaccounts", user.AllAuthenticated}}
		as, informers, err := c.ControlPlane.AsPlatform(account, "gantry-app")
		if err != nil {
			t.Fatal(err)
		}
		p := &platformTest{Cluster: c, t: t, apps: apps, counts: &countsFake{counts: map[string]app.Counts{}}, started: map[string]int{}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			_, err := controllertest.Live(ctx, as, informers, controllertest.Faults{CrashEvery: crashEvery},
				func(c ctrlclient.Client, i controller.Informers) (controllertest.Runner, error) {
					return app.New(c, i, silent{}, app.Options{Metrics: p.counts, Logs: logsFake{}})
				})
			if err != nil {
				t.Error(err)
			}
		})
		running.Go(func() { p.nodes(ctx) })
		defer running.Wait()
		defer cancel()
		f(p)
	})
}

type silent struct{}

func (silent) Event(obj runtime.Object, kind, reason, note string) {}

// nodes play the agents.
func (p *platformTest) nodes(ctx context.Context) {
	for ctx.Err() == nil {
		var pods corev1.PodList
		if err := p.Client.List(ctx, &pods, ctrlclient.InNamespace("default")); err == nil {
			for i := range pods.Items {
				p.act(ctx, &pods.Items[i])
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (p *platformTest) act(ctx context.Context, pod *corev1.Pod) {
	if pod.DeletionTimestamp != nil {
		_ = p.Client.Delete(ctx, pod.DeepCopy(), ctrlclient.GracePeriodSeconds(0))
		return
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	next := pod.DeepCopy()
	next.Status.Phase = corev1.PodRunning
	status := corev1.ContainerStatus{Name: "app", Image: pod.Spec.Containers[0].Image}
	if len(pod.Status.ContainerStatuses) > 0 {
		status = next.Status.ContainerStatuses[0]
	}
	if status.State.Running == nil && status.State.Waiting == nil {
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.Now()}
	}
	ready, listens := corev1.ConditionTrue, "0.0.0.0:8080"
	if job := pod.Labels["batch.kubernetes.io/job-name"]; job != "" {
		p.mu.Lock()
		p.started[job]++
		p.mu.Unlock()
		code := int32(0)
		next.Status.Phase = corev1.PodSucceeded
		if strings.Contains(strings.Join(pod.Spec.Containers[0].Command, " "), "fail") {
			code, next.Status.Phase = 7, corev1.PodFailed
		}
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()}}
		ready = corev1.ConditionFalse
	}
	switch image := pod.Spec.Containers[0].Image; {
	case strings.Contains(image, "crash"):
		ready, listens = corev1.ConditionFalse, ""
		status.RestartCount++
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2, StartedAt: metav1.Now(), FinishedAt: metav1.Now()}
	case strings.Contains(image, "missing"):
		ready, listens, next.Status.Phase = corev1.ConditionFalse, "", corev1.PodPending
		status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "shop:missing: not found"}}
	case strings.Contains(image, "deaf"):
		ready, listens = corev1.ConditionFalse, "127.0.0.1:8080"
	case strings.Contains(image, "hang"):
		ready, listens = corev1.ConditionFalse, ""
	case strings.Contains(image, "other"):
		listens = "0.0.0.0:3000"
		if ports := pod.Spec.Containers[0].Ports; len(ports) > 0 && ports[0].ContainerPort != 3000 {
			ready = corev1.ConditionFalse
		}
	}
	next.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	next.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()},
		{Type: corev1.ContainersReady, Status: ready},
		{Type: v1alpha1.ConditionListening, Status: corev1.ConditionTrue, Message: listens},
	}
	for i := range next.Status.Conditions {
		for _, old := range pod.Status.Conditions {
			if now := &next.Status.Conditions[i]; old.Type == now.Type && old.Status == now.Status {
				now.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	_ = p.Client.Status().Update(ctx, next)
}

func shop(image string) *v1alpha1.App {
	return &v1alpha1.App{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
		Spec:       v1alpha1.AppSpec{Image: image, Processes: map[string]v1alpha1.Process{"web": {Port: 8080}}},
	}
}

func (p *platformTest) create(a *v1alpha1.App) {
	p.t.Helper()
	if err := p.apps.Create(p.t.Context(), a); err != nil {
		p.t.Fatal(err)
	}
}

func (p *platformTest) app() *v1alpha1.App {
	p.t.Helper()
	out := &v1alpha1.App{}
	if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "shop"}, out); err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *platformTest) change(f func(a *v1alpha1.App)) {
	p.t.Helper()
	p.Eventually("change", func() error {
		a := p.app().DeepCopy()
		f(a)
		return p.apps.Update(p.t.Context(), a)
	})
}

// release waits until a release is in a phase.
func (p *platformTest) release(number int, phase string) *v1alpha1.Release {
	p.t.Helper()
	out := &v1alpha1.Release{}
	deadline := time.Now().Add(20 * time.Minute)
	for {
		err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: fmt.Sprintf("shop-v%d", number)}, out)
		if err == nil && out.Status.Phase == phase {
			return out
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("release %d is %+v, %v; want %s; the application is %+v", number, out.Status, err, phase, p.app().Status)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (p *platformTest) deployment(name string) *appsv1.Deployment {
	p.t.Helper()
	out := &appsv1.Deployment{}
	if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, out); err != nil && !apierrors.IsNotFound(err) {
		p.t.Fatal(err)
	}
	return out
}

func (p *platformTest) settled(phase string) *v1alpha1.App {
	p.t.Helper()
	p.Eventually("the application is "+phase, func() error {
		if got := p.app().Status; got.Phase != phase {
			return fmt.Errorf("status %+v", got)
		}
		return nil
	})
	return p.app()
}

func TestReleasesOfAnApplication(t *testing.T) {
	for _, every := range []int{0, 1, 2, 3} {
		t.Run(fmt.Sprintf("crash every %d", every), func(t *testing.T) {
			inPlatform(t, every, func(p *platformTest) {
				a := shop("shop:1")
				a.Spec.Release = &v1alpha1.ReleaseCommand{Command: "./shop migrate"}
				p.create(a)
				p.release(1, v1alpha1.ReleaseLive)
				p.change(func(a *v1alpha1.App) { a.Spec.Image = "shop:crash" })
				bad := p.release(2, v1alpha1.ReleaseFailed)
				if bad.Status.Reason != v1alpha1.ReasonCrashing || bad.Status.Log != "panic: no" {
					p.t.Errorf("release 2 is %+v", bad.Status)
				}
				p.release(1, v1alpha1.ReleaseLive)
				p.Eventually("the release before serves", func() error {
					if d := p.deployment("shop-web"); d.Spec.Template.Spec.Containers[0].Image != "shop:1" || d.Status.AvailableReplicas != 1 {
						return fmt.Errorf("%+v", d.Status)
					}
					return nil
				})
				p.change(func(a *v1alpha1.App) { a.Spec.Image, a.Spec.Config = "shop:3", map[string]string{"A": "b"} })
				p.release(3, v1alpha1.ReleaseLive)
				p.release(1, v1alpha1.ReleaseReplaced)
				p.change(func(a *v1alpha1.App) { a.Spec.Image, a.Spec.Config = "shop:1", nil })
				back := p.release(4, v1alpha1.ReleaseLive)
				if !strings.Contains(back.Status.Warning, "v2, v3") {
					p.t.Errorf("rollback across release commands warns %q", back.Status.Warning)
				}
				got := p.settled(v1alpha1.AppRunning).Status
				if got.Release != 4 || got.Latest != 4 || got.Processes["web"] != (v1alpha1.ProcessStatus{Desired: 1, Ready: 1, Port: 8080}) {
					p.t.Errorf("status %+v", got)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				for job, n := range p.started {
					if n != 1 {
						p.t.Errorf("%s ran %d times", job, n)
					}
				}
				if len(p.started) != 3 {
					p.t.Errorf("release commands that ran: %v, want those of 1, 2 and 3", p.started)
				}
			})
		})
	}
}

func TestReleasesThatCannotBeWell(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(a *v1alpha1.App)
		reason string
		within time.Duration
	}{
		"image not found":   {func(a *v1alpha1.App) { a.Spec.Image = "shop:missing" }, v1alpha1.ReasonImage, 10 * time.Second},
		"loopback only":     {func(a *v1alpha1.App) { a.Spec.Image = "shop:deaf" }, v1alpha1.ReasonPort, 10 * time.Second},
		"another port":      {func(a *v1alpha1.App) { a.Spec.Image = "shop:other" }, v1alpha1.ReasonPort, 25 * time.Second},
		"never ready":       {func(a *v1alpha1.App) { a.Spec.Image = "shop:hang" }, v1alpha1.ReasonUnhealthy, 80 * time.Second},
		"crash":             {func(a *v1alpha1.App) { a.Spec.Image = "shop:crash" }, v1alpha1.ReasonCrashing, 15 * time.Second},
		"release command":   {func(a *v1alpha1.App) { a.Spec.Release = &v1alpha1.ReleaseCommand{Command: "fail"} }, v1alpha1.ReasonCommandFailed, 10 * time.Second},
		"placed on no node": {func(a *v1alpha1.App) { a.Spec.Placement = &v1alpha1.Placement{Labels: map[string]string{"disk": "no"}} }, v1alpha1.ReasonNoRoom, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inPlatform(t, 0, func(p *platformTest) {
				p.create(shop("shop:1"))
				p.release(1, v1alpha1.ReleaseLive)
				begin := time.Now()
				p.change(tc.change)
				bad := p.release(2, v1alpha1.ReleaseFailed)
				if took := time.Since(begin); bad.Status.Reason != tc.reason || took > tc.within || bad.Status.Message == "" {
					p.t.Errorf("after %s: %+v, want %s within %s", took, bad.Status, tc.reason, tc.within)
				}
				if got := p.settled(v1alpha1.AppRunning).Status; got.Release != 1 || !strings.Contains(got.Message, "v1 serves") {
					p.t.Errorf("status %+v", got)
				}
			})
		})
	}
}

func TestPortIsFound(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		a := shop("shop:other")
		a.Spec.Processes = nil
		p.create(a)
		p.release(1, v1alpha1.ReleaseLive)
		if got := p.settled(v1alpha1.AppRunning).Status.Processes["web"]; got.Port != 3000 {
			p.t.Errorf("status %+v", got)
		}
		p.change(func(a *v1alpha1.App) { a.Spec.Image = "shop:other2" })
		begin := time.Now()
		p.release(2, v1alpha1.ReleaseLive)
		if took := time.Since(begin); took > 10*time.Second {
			p.t.Errorf("the next release took %s", took)
		}
	})
}

func TestSecretsAreWaitedForAndMakeReleases(t *testing.T) {
	inPlatform(t, 1, func(p *platformTest) {
		a := shop("shop:1")
		a.Spec.Secrets = []string{"KEY"}
		p.create(a)
		if got := p.release(1, v1alpha1.ReleaseWaiting); got.Status.Reason != v1alpha1.ReasonSecretMissing {
			p.t.Errorf("status %+v", got.Status)
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop-secrets"}, StringData: map[string]string{"KEY": "1"}}
		if err := p.apps.Create(p.t.Context(), secret); err != nil {
			p.t.Fatal(err)
		}
		p.release(1, v1alpha1.ReleaseLive)
		change(p.t, p.Cluster, secret, func(s *corev1.Secret) { s.Data = map[string][]byte{"KEY": []byte("2"), "OTHER": nil} })
		if got := p.release(2, v1alpha1.ReleaseLive); got.Spec.Content.Source.Reason != "secret KEY" {
			p.t.Errorf("source %+v", got.Spec.Content.Source)
		}
		time.Sleep(time.Minute)
		if latest := p.app().Status.Latest; latest != 2 {
			p.t.Errorf("%d releases, want 2", latest)
		}
	})
}

func TestAReleaseIsImmutable(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		p.create(shop("shop:1"))
		r := p.release(1, v1alpha1.ReleaseLive).DeepCopy()
		r.Spec.Content.Image = "shop:2"
		if err := p.apps.Update(p.t.Context(), r); err == nil || !strings.Contains(err.Error(), "a release does not change") {
			p.t.Errorf("Update = %v", err)
		}
		r = p.release(1, v1alpha1.ReleaseLive).DeepCopy()
		r.Spec.Intent = v1alpha1.IntentAbort
		if err := p.apps.Update(p.t.Context(), r); err != nil {
			p.t.Error(err)
		}
	})
}

func TestASleepingProcessIsWokenByItsService(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		a := shop("shop:1")
		a.Spec.Processes = map[string]v1alpha1.Process{"web": {Port: 8080, Scale: &v1alpha1.Scale{Min: new(int32)}}}
		p.create(a)
		p.release(1, v1alpha1.ReleaseLive)
		time.Sleep(8 * time.Minute)
		p.counts.add("shop-web", 1, 0)
		time.Sleep(8 * time.Minute)
		if d := p.deployment("shop-web"); *d.Spec.Replicas != 1 {
			p.t.Errorf("%d replicas eight minutes after a request", *d.Spec.Replicas)
		}
		time.Sleep(3 * time.Minute)
		p.settled(v1alpha1.AppSleeping)
		var service corev1.Service
		if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "shop-web"}, &service); err != nil {
			p.t.Fatal(err)
		}
		if service.Annotations[v1alpha1.AnnotationHold] == "" {
			p.t.Error("the Service does not ask for requests to be held")
		}
		next := service.DeepCopy()
		next.Annotations[v1alpha1.AnnotationWake] = time.Now().Format(time.RFC3339Nano)
		if err := p.apps.Update(p.t.Context(), next); err != nil {
			p.t.Fatal(err)
		}
		synctest.Wait()
		if d := p.deployment("shop-web"); *d.Spec.Replicas != 1 {
			p.t.Errorf("%d replicas after the wake-up", *d.Spec.Replicas)
		}
		p.settled(v1alpha1.AppRunning)
		time.Sleep(5 * time.Minute)
		p.settled(v1alpha1.AppRunning)
		time.Sleep(6 * time.Minute)
		p.settled(v1alpha1.AppSleeping)
	})
}

func TestRemovedAndExpired(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		a := shop("shop:1")
		a.Spec.Processes = map[string]v1alpha1.Process{"web": {Port: 8080, Volumes: map[string]v1alpha1.Volume{"/data": {Name: "data"}}}}
		p.create(a)
		time.Sleep(time.Second)
		p.change(func(a *v1alpha1.App) {
			a.Annotations = map[string]string{v1alpha1.AnnotationRemoved: time.Now().UTC().Format(time.RFC3339)}
		})
		p.settled(v1alpha1.AppRemoved)
		if d := p.deployment("shop-web"); d.Name != "" && *d.Spec.Replicas != 0 {
			p.t.Errorf("%d replicas of a removed application", *d.Spec.Replicas)
		}
		time.Sleep(6 * 24 * time.Hour)
		p.app()
		time.Sleep(25 * time.Hour)
		var claims corev1.PersistentVolumeClaimList
		if err := p.apps.List(p.t.Context(), &claims, ctrlclient.InNamespace("default")); err != nil || len(claims.Items) != 0 {
			p.t.Errorf("claims %v, %v", claims.Items, err)
		}
		if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "shop"}, &v1alpha1.App{}); !apierrors.IsNotFound(err) {
			p.t.Errorf("Get = %v", err)
		}
	})
}

func TestNothingIsWrittenWhenNothingChanged(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		a := shop("shop:1")
		a.Spec.Processes["worker"] = v1alpha1.Process{Command: "./shop work", Scale: &v1alpha1.Scale{Min: new(int32(2))}}
		a.Spec.Processes["report"] = v1alpha1.Process{Command: "./shop report", Schedule: "0 3 * * *"}
		p.create(a)
		p.release(1, v1alpha1.ReleaseLive)
		time.Sleep(time.Minute)
		before := versions(p)
		time.Sleep(time.Hour)
		if after := versions(p); after != before {
			p.t.Errorf("objects changed:\n%s\n%s", before, after)
		}
	})
}

func versions(p *platformTest) string {
	out := ""
	for _, list := range []ctrlclient.ObjectList{&v1alpha1.AppList{}, &v1alpha1.ReleaseList{}, &appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}} {
		if err := p.apps.List(p.t.Context(), list, ctrlclient.InNamespace("default")); err != nil {
			p.t.Fatal(err)
		}
		_ = meta.EachListItem(list, func(item runtime.Object) error {
			o := item.(ctrlclient.Object)
			out += fmt.Sprintf("%T %s %s\n", o, o.GetName(), o.GetResourceVersion())
			return nil
		})
	}
	return out
}

// gatewayKinds are definitions that take any Gateway and HTTPRoute, and the platform's Gateway.
func gatewayKinds(t *testing.T, p *platformTest) {
	t.Helper()
	for plural, kind := range map[string]string{"gateways": "Gateway", "httproutes": "HTTPRoute"} {
		crd := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": plural + ".gateway.networking.k8s.io", "annotations": map[string]any{"api-approved.kubernetes.io": "unapproved, a test"}},
			"spec": map[string]any{
				"group": "gateway.networking.k8s.io", "scope": "Namespaced",
				"names": map[string]any{"plural": plural, "singular": strings.ToLower(kind), "kind": kind, "listKind": kind + "List"},
				"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{
					"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true},
				}}},
			},
		}}
		if err := p.apps.Create(p.t.Context(), crd); err != nil {
			p.t.Fatal(err)
		}
	}
	gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "gantry-system", Name: "gantry"}}
	gateway.Spec.GatewayClassName = "gantry"
	gateway.Spec.Listeners = []gatewayv1.Listener{
		{Name: "http", Port: 8000, Protocol: gatewayv1.HTTPProtocolType}, {Name: "https", Port: 443, Protocol: gatewayv1.HTTPSProtocolType},
	}
	p.Eventually("the Gateway is made", func() error { return p.apps.Create(p.t.Context(), gateway) })
}

// weights are the shares of the application's route.
func (p *platformTest) weights() string {
	p.t.Helper()
	var route gatewayv1.HTTPRoute
	if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "shop-web"}, &route); err != nil {
		p.t.Fatal(err)
	}
	out := ""
	for _, b := range route.Spec.Rules[0].BackendRefs {
		out += fmt.Sprintf("%s=%d ", b.Name, *b.Weight)
	}
	return strings.TrimSpace(out)
}

func canaryShop(image string) *v1alpha1.App {
	a := shop(image)
	a.Spec.Rollout = &v1alpha1.Rollout{Strategy: v1alpha1.RolloutCanary, Steps: []int32{10, 100}, Every: &metav1.Duration{Duration: time.Minute}, Sample: 50}
	return a
}

func TestACanaryIsPromotedOrAborted(t *testing.T) {
	for _, every := range []int{0, 1} {
		t.Run(fmt.Sprintf("crash every %d", every), func(t *testing.T) {
			inPlatform(t, every, func(p *platformTest) {
				gatewayKinds(p.t, p)
				p.create(canaryShop("shop:1"))
				p.release(1, v1alpha1.ReleaseLive)
				if got := p.app().Status.URLs; len(got) != 1 || got[0] != "http://shop.localhost:8000" {
					p.t.Errorf("addresses %v", got)
				}
				p.change(func(a *v1alpha1.App) { a.Spec.Image = "shop:2" })
				p.release(2, v1alpha1.ReleaseCanary)
				p.Eventually("the canary has its share", func() error {
					if got := p.weights(); got != "shop-web=90 shop-web-canary=10" {
						return fmt.Errorf("weights %s", got)
					}
					return nil
				})
				p.counts.add("shop-web-canary", 100, 1)
				p.release(2, v1alpha1.ReleaseLive)
				p.settled(v1alpha1.AppRunning)
				p.Eventually("everything goes to the release", func() error {
					if got, canary := p.weights(), p.deployment("shop-web-canary"); got != "shop-web=100" || canary.Name != "" {
						return fmt.Errorf("weights %s, canary %q", got, canary.Name)
					}
					return nil
				})
				p.change(func(a *v1alpha1.App) { a.Spec.Image = "shop:3" })
				p.release(3, v1alpha1.ReleaseCanary)
				time.Sleep(20 * time.Second)
				p.counts.add("shop-web-canary", 100, 20)
				begin := time.Now()
				bad := p.release(3, v1alpha1.ReleaseAborted)
				if took := time.Since(begin); bad.Status.Reason != v1alpha1.ReasonAnalysis || took > 10*time.Second {
					p.t.Errorf("after %s: %+v", took, bad.Status)
				}
				p.Eventually("everything goes to the release before", func() error {
					if got, d := p.weights(), p.deployment("shop-web"); got != "shop-web=100" || d.Spec.Template.Spec.Containers[0].Image != "shop:2" {
						return fmt.Errorf("weights %s", got)
					}
					return nil
				})
			})
		})
	}
}

func TestACanaryIsPromotedByHandAndTested(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		gatewayKinds(p.t, p)
		a := canaryShop("shop:1")
		a.Spec.Rollout.Every, a.Spec.Rollout.Test = &metav1.Duration{}, "./smoke"
		p.create(a)
		p.release(1, v1alpha1.ReleaseLive)
		p.change(func(a *v1alpha1.App) { a.Spec.Image = "shop:2" })
		p.release(2, v1alpha1.ReleaseCanary)
		time.Sleep(time.Hour)
		r := p.release(2, v1alpha1.ReleaseCanary)
		if c := r.Status.Canary; c == nil || !c.Waits || c.Step != 0 || c.Weight != 10 {
			p.t.Fatalf("canary %+v", c)
		}
		for step := range int32(2) {
			p.Eventually("promotion", func() error {
				next := p.release(2, v1alpha1.ReleaseCanary).DeepCopy()
				next.Spec.Intent, next.Spec.Step = v1alpha1.IntentPromote, step
				return p.apps.Update(p.t.Context(), next)
			})
			time.Sleep(10 * time.Second)
		}
		p.release(2, v1alpha1.ReleaseLive)
		p.change(func(a *v1alpha1.App) { a.Spec.Image, a.Spec.Rollout.Test = "shop:3", "fail" })
		if bad := p.release(3, v1alpha1.ReleaseAborted); bad.Status.Reason != v1alpha1.ReasonCommandFailed {
			p.t.Errorf("status %+v", bad.Status)
		}
	})
}

func TestAnAddressWithoutANameHasAPortForEachApplication(t *testing.T) {
	inPlatform(t, 1, func(p *platformTest) {
		gatewayKinds(p.t, p)
		config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "gantry-system", Name: "platform"}, Data: map[string]string{"publicAddress": "203.0.113.7"}}
		if err := p.apps.Create(p.t.Context(), config); err != nil {
			p.t.Fatal(err)
		}
		p.create(shop("shop:1"))
		p.release(1, v1alpha1.ReleaseLive)
		other := shop("shop:1")
		other.Name = "blog"
		p.create(other)
		p.Eventually("the second has a port of its own", func() error {
			var blog v1alpha1.App
			if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "blog"}, &blog); err != nil {
				return err
			}
			if got := append(p.app().Status.URLs[:1:1], blog.Status.URLs...); len(got) != 3 || got[0] != "https://203.0.113.7" || got[1] != "https://203.0.113.7:8443" {
				return fmt.Errorf("addresses %v", got)
			}
			var gateway gatewayv1.Gateway
			if err := p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "gantry-system", Name: "gantry"}, &gateway); err != nil {
				return err
			}
			if l := gateway.Spec.Listeners; len(l) != 3 || l[2].Port != 8443 {
				return fmt.Errorf("listeners %+v", l)
			}
			return nil
		})
		config = config.DeepCopy()
		config.Data = map[string]string{"domain": "*.example.com"}
		if err := p.apps.Update(p.t.Context(), config); err != nil {
			p.t.Fatal(err)
		}
		p.Eventually("the domain is used", func() error {
			if got := p.app().Status.URLs; len(got) != 1 || got[0] != "https://shop.example.com" {
				return fmt.Errorf("addresses %v", got)
			}
			return nil
		})
	})
}
