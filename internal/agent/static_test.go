package agent

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
)

// manifests is a source of static pods that a test changes.
type manifests struct {
	pods    []*corev1.Pod
	changed func([]*corev1.Pod)
}

func (m *manifests) Read() []*corev1.Pod { return m.pods }

func (m *manifests) Run(ctx context.Context, changed func([]*corev1.Pod)) {
	m.changed = changed
	<-ctx.Done()
}

func (m *manifests) set(pods ...*corev1.Pod) {
	m.pods = pods
	m.changed(pods)
	synctest.Wait()
}

// staticPod is one that a manifest with this content makes.
func staticPod(name, hash string, edit ...func(*corev1.Pod)) *corev1.Pod {
	return newPod(name, append([]func(*corev1.Pod){func(pod *corev1.Pod) {
		pod.UID = types.UID(hash)
		pod.Annotations = map[string]string{annotationSource: sourceFile, annotationHash: hash}
		pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
	}}, edit...)...)
}

func (r *rig) mirror(name string) *corev1.Pod {
	r.t.Helper()
	pod := r.pod(name)
	if !isMirror(pod) {
		r.t.Fatalf("%s is no mirror: %v", name, pod.Annotations)
	}
	return pod
}

func (r *rig) sandboxes() []string {
	r.t.Helper()
	list, err := r.runtime.List(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var ids []string
	for _, s := range list {
		ids = append(ids, s.Sandbox.ID)
	}
	slices.Sort(ids)
	return ids
}

func withStatic(t *testing.T, source *manifests, test func(r *rig)) {
	bubble(t, func(r *rig) {
		r.stop()
		r.static = source
		r.start()
		test(r)
	})
}

func TestStaticPodHasAMirror(t *testing.T) {
	withStatic(t, &manifests{pods: []*corev1.Pod{staticPod("web", "h1")}}, func(r *rig) {
		time.Sleep(5 * time.Second)
		synctest.Wait()
		mirror := r.mirror("web")
		if mirror.Status.Phase != corev1.PodRunning || mirror.Status.PodIP == "" {
			t.Errorf("the mirror says %s at %q", mirror.Status.Phase, mirror.Status.PodIP)
		}
		for key, want := range map[string]string{annotationMirror: "h1", annotationHash: "h1", annotationSource: sourceFile} {
			if mirror.Annotations[key] != want {
				t.Errorf("annotation %s is %q, want %q", key, mirror.Annotations[key], want)
			}
		}
		if o := mirror.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].UID != "node-uid" || !*o[0].Controller {
			t.Errorf("owners are %v", o)
		}
		// Somebody deletes the mirror: it comes again, and the pod did not notice.
		started := len(r.runtime.Starts())
		if err := r.api.Delete(t.Context(), mirror); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		again := r.mirror("web")
		if again.DeletionTimestamp != nil || again.Status.Phase != corev1.PodRunning || len(r.runtime.Starts()) != started {
			t.Errorf("after its deletion the mirror is %s (deleted %v), %v were started", again.Status.Phase, again.DeletionTimestamp, r.runtime.Starts())
		}
		// An agent that starts again finds everything as it is.
		r.restart()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := r.runtime.Starts(); len(got) != started {
			t.Errorf("after a restart of the agent %v were started", got)
		}
	})
}

func TestStaticPodChanges(t *testing.T) {
	source := &manifests{}
	withStatic(t, source, func(r *rig) {
		r.runtime.Behave = func(container.Config) agenttest.Behavior { return agenttest.Behavior{StopTakes: 3 * time.Second} }
		source.set(staticPod("web", "h1"), staticPod("other", "o1"))
		time.Sleep(5 * time.Second)
		source.set(staticPod("web", "h2"), staticPod("other", "o1"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.sandboxes(); !slices.Equal(got, []string{"h1", "o1"}) {
			t.Errorf("while the old pod ends there are %v", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.sandboxes(); !slices.Equal(got, []string{"h2", "o1"}) {
			t.Errorf("then there are %v", got)
		}
		if m := r.mirror("web"); m.Annotations[annotationMirror] != "h2" || m.Status.Phase != corev1.PodRunning {
			t.Errorf("the mirror is of %s and %s", m.Annotations[annotationMirror], m.Status.Phase)
		}
		source.set(staticPod("other", "o1"))
		time.Sleep(time.Minute)
		synctest.Wait()
		var gone corev1.Pod
		if err := r.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &gone); !apierrors.IsNotFound(err) {
			t.Errorf("the mirror of a pod that is no more: %v", err)
		}
		// What changed while the agent was away counts too.
		r.stop()
		source.pods = []*corev1.Pod{staticPod("other", "o2")}
		r.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.sandboxes(); !slices.Equal(got, []string{"o2"}) {
			t.Errorf("after a change while the agent was away there are %v", got)
		}
		if m := r.mirror("other"); m.Annotations[annotationMirror] != "o2" {
			t.Errorf("the mirror is of %s", m.Annotations[annotationMirror])
		}
	})
}

// TestStaticPodThatHasEnded does not run again when the agent does.
func TestStaticPodThatHasEnded(t *testing.T) {
	once := staticPod("once", "h1", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
	withStatic(t, &manifests{pods: []*corev1.Pod{once}}, func(r *rig) {
		time.Sleep(5 * time.Second)
		list, err := r.runtime.List(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		r.runtime.Exit(list[0].Containers[0].ID, 0)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if m := r.mirror("once"); m.Status.Phase != corev1.PodSucceeded {
			t.Fatalf("the mirror says %s", m.Status.Phase)
		}
		r.restart()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.runtime.Starts(); len(got) != 1 {
			t.Errorf("started %v", got)
		}
	})
}

// gate keeps informers from being there until it is opened.
type gate struct {
	*agenttest.API
	open chan struct{}
}

func (g gate) GetInformer(ctx context.Context, object client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	select {
	case <-g.open:
		return g.API.GetInformer(ctx, object, opts...)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestStaticPodWithoutAPI runs before the API is there: one in the node's network at once, and
// with the ranges of the time before also one of its own.
func TestStaticPodWithoutAPI(t *testing.T) {
	host := staticPod("host", "h1", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	withStatic(t, &manifests{pods: []*corev1.Pod{host, staticPod("own", "o1")}}, func(r *rig) {
		r.stop()
		r.runtime, r.network = agenttest.NewRuntime(), &agenttest.Network{}
		open := make(chan struct{})
		r.informers = gate{r.api, open}
		r.api.SetDown(true)
		r.start()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := r.sandboxes(); !slices.Equal(got, []string{"h1", "o1"}) {
			t.Errorf("without the API there are %v", got)
		}
		r.api.SetDown(false)
		close(open)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if m := r.mirror("host"); m.Status.Phase != corev1.PodRunning {
			t.Errorf("once the API is there the mirror says %s", m.Status.Phase)
		}
	})
}
