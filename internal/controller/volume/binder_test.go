package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/volume/local"
)

type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) Event(obj runtime.Object, _, reason, _ string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, fmt.Sprintf("%T %s", obj, reason))
}

// world is a cluster with the controllers of this package and one node with a disk.
type world struct {
	*controllertest.Cluster
	t      *testing.T
	events *notes
	disk   map[string]bool // folders

	mu     sync.Mutex // guards the fields below
	writes int        // of the controllers
	die    int        // the write at which they die, 0 never
	after  bool       // they die after it, not before
	dead   bool
	acting bool // the test writes, not the controllers
}

var errDead = errors.New("the controllers are dead")

func newWorld(t *testing.T, objs ...client.Object) *world {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelHostname: "n1"}, Annotations: map[string]string{local.DirAnnotation: "/data/volumes"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
	class := newClass("fast", storagev1.VolumeBindingWaitForFirstConsumer, local.Provisioner)
	class.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimDelete)
	class.AllowVolumeExpansion = ptr.To(true)
	w := &world{t: t, events: &notes{}, disk: map[string]bool{}, Cluster: controllertest.New(t, append(objs, node, class)...)}
	w.SetBeforeWrite(w.allow)
	return w
}

// allow kills the controllers at the write that the test names, and checks what must never be.
func (w *world) allow(write controllertest.Write) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.acting {
		return nil
	}
	if w.dead {
		return errDead
	}
	if pv, ok := write.Object.(*corev1.PersistentVolume); ok && write.Verb == "delete" && w.claimed(pv) {
		w.t.Errorf("volume %s is deleted while its claim is there", pv.Name)
	}
	w.writes++
	if w.writes == w.die {
		w.dead = true
		if !w.after {
			return errDead
		}
	}
	return nil
}

func (w *world) claimed(pv *corev1.PersistentVolume) bool {
	claim := &corev1.PersistentVolumeClaim{}
	err := w.Get(w.t.Context(), client.ObjectKey{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name}, claim)
	return err == nil && claim.UID == pv.Spec.ClaimRef.UID
}

// act writes as somebody else than the controllers.
func (w *world) act(f func() error) {
	w.t.Helper()
	w.mu.Lock()
	w.acting = true
	w.mu.Unlock()
	if err := f(); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.acting = false
	w.mu.Unlock()
}

// settle runs the controllers, starting them again when they died, until nothing changes.
func (w *world) settle() {
	w.t.Helper()
	for range 3 {
		ctx, cancel := context.WithCancel(w.t.Context())
		var running sync.WaitGroup
		for _, build := range []func() (interface{ Run(context.Context) error }, error){
			func() (interface{ Run(context.Context) error }, error) {
				return NewBinder(w, w, w.events, Options{})
			},
			func() (interface{ Run(context.Context) error }, error) {
				return NewEphemeral(w, w, w.events, Options{})
			},
			func() (interface{ Run(context.Context) error }, error) {
				return NewExpander(w, w, w.events, Options{})
			},
		} {
			c, err := build()
			if err != nil {
				w.t.Fatal(err)
			}
			running.Go(func() { _ = c.Run(ctx) })
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		cancel()
		running.Wait()
		w.mu.Lock()
		again := w.dead
		w.dead, w.die = false, 0
		w.mu.Unlock()
		if !again {
			return
		}
	}
	w.t.Fatal("the controllers died again")
}

// node does what the agent does: make the folders of bound volumes, remove those of its list.
func (w *world) node() {
	w.t.Helper()
	var volumes corev1.PersistentVolumeList
	if err := w.List(w.t.Context(), &volumes); err != nil {
		w.t.Fatal(err)
	}
	bound := map[string]bool{}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if folder := local.Folder(pv); folder != "" && pv.Status.Phase == corev1.VolumeBound {
			w.disk[folder], bound[folder] = true, true
		}
	}
	node := &corev1.Node{}
	if err := w.Get(w.t.Context(), client.ObjectKey{Name: "n1"}, node); err != nil {
		w.t.Fatal(err)
	}
	next := node.DeepCopy()
	orders := local.Split(node.Annotations[local.RemoveAnnotation])
	for _, folder := range orders {
		if bound[folder] {
			w.t.Errorf("the node is told to remove %s, which a claim has", folder)
		}
		delete(w.disk, folder)
	}
	next.Annotations[local.RemovedAnnotation] = local.Join(orders)
	w.act(func() error { return w.Update(w.t.Context(), next) })
}

func (w *world) claim(name string) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{}
	if err := w.Get(w.t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, claim); err != nil {
		w.t.Fatal(err)
	}
	return claim.DeepCopy()
}

// life is a claim's: made, placed by the scheduler, bound, enlarged, deleted.
func (w *world) life() (states []string) {
	w.t.Helper()
	note := func(step string) {
		var volumes corev1.PersistentVolumeList
		var claims corev1.PersistentVolumeClaimList
		if err := errors.Join(w.List(w.t.Context(), &volumes), w.List(w.t.Context(), &claims)); err != nil {
			w.t.Fatal(err)
		}
		text := step + ":"
		for _, c := range claims.Items {
			text += fmt.Sprintf(" claim %s %s of %s", c.Name, c.Status.Phase, c.Status.Capacity.Storage())
		}
		for _, pv := range volumes.Items {
			text += fmt.Sprintf(" volume %s %s leaving %v", pv.Spec.ClaimRef.Name, pv.Status.Phase, pv.DeletionTimestamp != nil)
		}
		states = append(states, fmt.Sprintf("%s folders %d", text, len(w.disk)))
	}
	w.act(func() error {
		c := newClaim()
		c.UID, c.Status.Phase = "", ""
		return w.Create(w.t.Context(), c)
	})
	w.settle()
	note("made")
	w.act(func() error {
		c := w.claim("data")
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, storagehelpers.AnnSelectedNode, "n1")
		return w.Update(w.t.Context(), c)
	})
	w.settle()
	w.node()
	note("placed")
	w.act(func() error {
		c := w.claim("data")
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("8Gi")
		return w.Update(w.t.Context(), c)
	})
	w.settle()
	note("enlarged")
	w.act(func() error { return w.Delete(w.t.Context(), w.claim("data")) })
	w.settle()
	note("deleted")
	w.node()
	w.settle()
	w.node()
	note("removed")
	return states
}

func TestLifeOfALocalVolume(t *testing.T) {
	want := []string{
		"made: claim data Pending of 0 folders 0",
		"placed: claim data Bound of 5Gi volume data Bound leaving false folders 1",
		"enlarged: claim data Bound of 8Gi volume data Bound leaving false folders 1",
		"deleted: volume data Released leaving true folders 1",
		"removed: folders 0",
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if got := w.life(); !slices.Equal(got, want) {
			t.Errorf("states\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		node := &corev1.Node{}
		if err := w.Get(t.Context(), client.ObjectKey{Name: "n1"}, node); err != nil || node.Annotations[local.RemoveAnnotation] != "" {
			t.Errorf("the node is left with orders %q, %v", node.Annotations[local.RemoveAnnotation], err)
		}
		for _, event := range []string{"WaitForFirstConsumer", "ProvisioningSucceeded", "VolumeResizeSuccessful"} {
			if !slices.Contains(w.events.seen, "*v1.PersistentVolumeClaim "+event) {
				t.Errorf("no event %s among %v", event, w.events.seen)
			}
		}
	})
}

func TestCrashAtEveryWrite(t *testing.T) {
	var want []string
	total := 0
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		want = w.life()
		total = w.writes
	})
	if total < 10 {
		t.Fatalf("only %d writes", total)
	}
	for _, after := range []bool{false, true} {
		for at := 1; at <= total; at++ {
			t.Run(fmt.Sprintf("write %d, after %v", at, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.die, w.after = at, after
					if got := w.life(); !slices.Equal(got, want) {
						t.Errorf("states\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				})
			})
		}
	}
}

func TestStaticVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retain := policy(corev1.PersistentVolumeReclaimRetain)
		w := newWorld(t, newPV("small", "5Gi", retain), newPV("large", "9Gi", retain))
		w.act(func() error {
			return w.Create(t.Context(), newClass("now", storagev1.VolumeBindingImmediate, storagehelpers.NotSupportedProvisioner))
		})
		for _, name := range []string{"small", "large"} {
			pv := &corev1.PersistentVolume{}
			if err := w.Get(t.Context(), client.ObjectKey{Name: name}, pv); err != nil {
				t.Fatal(err)
			}
			next := pv.DeepCopy()
			next.Spec.StorageClassName = "now"
			w.act(func() error { return w.Update(t.Context(), next) })
		}
		for _, name := range []string{"a", "b", "c"} {
			w.act(func() error {
				return w.Create(t.Context(), newClaim(func(c *corev1.PersistentVolumeClaim) {
					c.Name, c.UID, c.Spec.StorageClassName, c.Status.Phase = name, "", ptr.To("now"), ""
				}))
			})
		}
		w.settle()
		phases := map[corev1.PersistentVolumeClaimPhase]int{}
		bound := map[string]bool{}
		var pending string
		for _, name := range []string{"a", "b", "c"} {
			c := w.claim(name)
			phases[c.Status.Phase]++
			if c.Status.Phase == corev1.ClaimBound {
				bound[c.Spec.VolumeName] = true
			} else {
				pending = name
			}
		}
		if phases[corev1.ClaimBound] != 2 || len(bound) != 2 || phases[corev1.ClaimPending] != 1 {
			t.Fatalf("phases %v, volumes %v", phases, bound)
		}
		// A volume that comes later is found without a resync.
		w.act(func() error {
			return w.Create(t.Context(), newPV("late", "6Gi", retain, func(pv *corev1.PersistentVolume) {
				pv.UID, pv.Spec.StorageClassName, pv.Status.Phase = "", "now", ""
			}))
		})
		w.settle()
		if c := w.claim(pending); c.Spec.VolumeName != "late" {
			t.Errorf("claim %s has volume %q, want late", pending, c.Spec.VolumeName)
		}
		w.act(func() error { return w.Delete(t.Context(), w.claim(pending)) })
		w.settle()
		pv := &corev1.PersistentVolume{}
		if err := w.Get(t.Context(), client.ObjectKey{Name: "late"}, pv); err != nil || pv.Status.Phase != corev1.VolumeReleased {
			t.Errorf("the kept volume is %s, %v", pv.Status.Phase, err)
		}
	})
}

func TestExternalProvisioner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.act(func() error {
			return errors.Join(w.Create(t.Context(), newClass("net", storagev1.VolumeBindingImmediate, "disk.example")),
				w.Create(t.Context(), newClaim(func(c *corev1.PersistentVolumeClaim) { c.UID, c.Spec.StorageClassName = "", ptr.To("net") })))
		})
		w.settle()
		c := w.claim("data")
		if c.Annotations[storagehelpers.AnnStorageProvisioner] != "disk.example" || c.Annotations[storagehelpers.AnnBetaStorageProvisioner] != "disk.example" ||
			!slices.Contains(w.events.seen, "*v1.PersistentVolumeClaim ExternalProvisioning") {
			t.Fatalf("annotations %v, events %v", c.Annotations, w.events.seen)
		}
		// The provisioner makes a volume that refers to the claim.
		w.act(func() error {
			return w.Create(t.Context(), newPV("pvc-1", "5Gi", refersTo(c.UID), func(pv *corev1.PersistentVolume) {
				pv.UID, pv.Spec.StorageClassName, pv.Status.Phase = "", "net", corev1.VolumePending
				pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] = "disk.example"
			}))
		})
		w.settle()
		if c := w.claim("data"); c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName != "pvc-1" {
			t.Errorf("claim is %s with %q", c.Status.Phase, c.Spec.VolumeName)
		}
		w.act(func() error { return w.Delete(t.Context(), c) })
		w.settle()
		pv := &corev1.PersistentVolume{}
		if err := w.Get(t.Context(), client.ObjectKey{Name: "pvc-1"}, pv); err != nil || pv.Status.Phase != corev1.VolumeReleased {
			t.Errorf("the provisioner's volume is %s, %v; want Released, for it to delete", pv.Status.Phase, err)
		}
	})
}

func TestEphemeralVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{{
			Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: newClaim().Spec,
			}}},
		}}}}
		w := newWorld(t, pod)
		w.settle()
		c := w.claim("web-scratch")
		owner := metav1.GetControllerOf(c)
		if owner == nil || owner.Name != "web" || c.Labels["a"] != "b" {
			t.Errorf("claim %v owned by %v", c.Labels, owner)
		}
		if !slices.ContainsFunc(w.events.seen, func(e string) bool { return strings.HasSuffix(e, "WaitForPodScheduled") }) {
			t.Errorf("events %v", w.events.seen)
		}
	})
}

func TestClaimsThatWaitForAClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }))
		w.settle()
		if got := w.claim("data"); got.Spec.StorageClassName != nil {
			t.Fatalf("class %v", got.Spec.StorageClassName)
		}
		class := &storagev1.StorageClass{}
		if err := w.Get(t.Context(), client.ObjectKey{Name: "fast"}, class); err != nil {
			t.Fatal(err)
		}
		next := class.DeepCopy()
		next.Annotations = maps.Clone(map[string]string{"storageclass.kubernetes.io/is-default-class": "true"})
		w.act(func() error { return w.Update(t.Context(), next) })
		w.settle()
		if got := w.claim("data").Spec.StorageClassName; ptr.Deref(got, "") != "fast" {
			t.Errorf("class %v, want fast", got)
		}
	})
}
