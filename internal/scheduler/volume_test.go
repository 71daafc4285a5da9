package scheduler

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newClaim(name, class string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name), Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func boundTo(pv string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase = pv, corev1.ClaimBound
		c.Annotations[storagehelpers.AnnBindCompleted] = "yes"
	}
}

func modes(m ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = m }
}

func newPV(name, class, host string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("pv-" + name), Labels: map[string]string{}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	if host != "" {
		pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
		}}}}
	}
	for _, f := range change {
		f(pv)
	}
	return pv
}

func newClass(name string, mode storagev1.VolumeBindingMode, provisioner string) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
}

func withClaims(names ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, name := range names {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}})
		}
	}
}

// seen gives volumes what events would.
func seen(t *testing.T, s *State, v *volumes, objs ...client.Object) {
	t.Helper()
	for _, obj := range objs {
		switch o := obj.(type) {
		case *corev1.Node:
			s.SetNode(o)
		case *corev1.Pod:
			s.AddPod(o, o.Spec.NodeName)
		case *corev1.PersistentVolumeClaim:
			v.setClaim(nil, o)
		case *corev1.PersistentVolume:
			v.setVolume(nil, o)
		case *storagev1.StorageClass:
			v.classes[o.Name] = o
		case *storagev1.CSINode:
			v.csiNodes[o.Name] = o
		case *storagev1.CSIDriver:
			v.csiDrivers[o.Name] = o
		case *storagev1.CSIStorageCapacity:
			v.capacities[client.ObjectKeyFromObject(o)] = o
		default:
			t.Fatalf("%T", obj)
		}
	}
}

func TestVolumeFilters(t *testing.T) {
	const wait, now = storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	host := func(name string, change ...func(*corev1.Node)) *corev1.Node {
		n := newNode(name, "4", "4Gi", append(change, label(corev1.LabelHostname, name))...)
		return n
	}
	nodes := []client.Object{host("a"), host("b"), newClass("later", wait, "disk.example"), newClass("now", now, "disk.example"), newClass("static", wait, storagehelpers.NotSupportedProvisioner)}
	zoned := newClass("zoned", wait, "disk.example")
	zoned.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelHostname, Values: []string{"b"}}}}}
	csi := func(handle string) func(*corev1.PersistentVolume) {
		return func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk.example", VolumeHandle: handle}
		}
	}
	for name, tc := range map[string]struct {
		objs   []client.Object
		claims []string
		want   string // the node, or the message
	}{
		"no such claim":             {claims: []string{"data"}, want: `0/2 nodes are available: persistentvolumeclaim "data" not found.`},
		"being deleted":             {objs: []client.Object{newClaim("data", "later", func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} })}, claims: []string{"data"}, want: `0/2 nodes are available: persistentvolumeclaim "data" is being deleted.`},
		"lost":                      {objs: []client.Object{newClaim("data", "later", func(c *corev1.PersistentVolumeClaim) { c.Status.Phase, c.Spec.VolumeName = corev1.ClaimLost, "x" })}, claims: []string{"data"}, want: `0/2 nodes are available: persistentvolumeclaim "data" bound to non-existent persistentvolume "x".`},
		"immediate and not bound":   {objs: []client.Object{newClaim("data", "now")}, claims: []string{"data"}, want: "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		"bound to a local volume":   {objs: []client.Object{newClaim("data", "later", boundTo("pv")), newPV("pv", "later", "b")}, claims: []string{"data"}, want: "b"},
		"bound to a node elsewhere": {objs: []client.Object{newClaim("data", "later", boundTo("pv")), newPV("pv", "later", "c")}, claims: []string{"data"}, want: "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."},
		"on two nodes": {objs: []client.Object{newClaim("data", "later", boundTo("pv")), newPV("pv", "later", "a"), newClaim("log", "later", boundTo("pv2")), newPV("pv2", "later", "b")},
			claims: []string{"data", "log"}, want: "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."},
		"static, on one node": {objs: []client.Object{newClaim("data", "static"), newPV("pv", "static", "b")}, claims: []string{"data"}, want: "b"},
		"static, none left":   {objs: []client.Object{newClaim("data", "static"), newPV("pv", "other", "b")}, claims: []string{"data"}, want: "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		"static, one for two": {objs: []client.Object{newClaim("data", "static"), newClaim("log", "static"), newPV("pv", "static", "b")}, claims: []string{"data", "log"}, want: "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		"to be provisioned":   {objs: []client.Object{zoned, newClaim("data", "zoned")}, claims: []string{"data"}, want: "b"},
		"already chosen":      {objs: []client.Object{newClaim("data", "later", func(c *corev1.PersistentVolumeClaim) { c.Annotations[storagehelpers.AnnSelectedNode] = "b" })}, claims: []string{"data"}, want: "b"},
		"no space": {objs: []client.Object{newClaim("data", "later"), &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk.example"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: ptr.To(true)}}},
			claims: []string{"data"}, want: "0/2 nodes are available: 2 node(s) did not have enough free storage."},
		"space on one node": {objs: []client.Object{newClaim("data", "later"), &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk.example"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: ptr.To(true)}},
			&storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Name: "b"}, StorageClassName: "later", Capacity: ptr.To(resource.MustParse("9Gi")), NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: "b"}}}},
			claims: []string{"data"}, want: "b"},
		"used by a single pod": {objs: []client.Object{newClaim("data", "later", boundTo("pv"), modes(corev1.ReadWriteOncePod)), newPV("pv", "later", ""), newPod("old", "", "", on("a"), withClaims("data"))},
			claims: []string{"data"}, want: "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod."},
		"used by several": {objs: []client.Object{newClaim("data", "later", boundTo("pv")), newPV("pv", "later", "a"), newPod("old", "", "", on("a"), withClaims("data"))}, claims: []string{"data"}, want: "a"},
		"a zone's volume": {objs: []client.Object{host("z", label(corev1.LabelTopologyZone, "z1")), host("y", label(corev1.LabelTopologyZone, "z2")), host("a", label(corev1.LabelTopologyZone, "z2")), host("b", label(corev1.LabelTopologyZone, "z3")),
			newClaim("data", "later", boundTo("pv")), newPV("pv", "later", "", func(pv *corev1.PersistentVolume) { pv.Labels[corev1.LabelFailureDomainBetaZone] = "z1__z9" })}, claims: []string{"data"}, want: "z"},
		"limit reached": {objs: []client.Object{
			&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "disk.example", Allocatable: &storagev1.VolumeNodeResources{Count: ptr.To[int32](1)}}}}},
			newClaim("old", "later", boundTo("pv1")), newPV("pv1", "later", "", csi("1")), newPod("old", "", "", on("a"), withClaims("old")),
			newClaim("data", "later", boundTo("pv2")), newPV("pv2", "later", "", csi("2"))}, claims: []string{"data"}, want: "b"},
		"limit, but attached there": {objs: []client.Object{
			&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "disk.example", Allocatable: &storagev1.VolumeNodeResources{Count: ptr.To[int32](1)}}}}},
			newClaim("old", "later", boundTo("pv1")), newPV("pv1", "later", "a", csi("1")), newPod("old", "", "", on("a"), withClaims("old"))}, claims: []string{"old"}, want: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			v := newVolumes(nil, s, nil)
			s.outside = []outsideFilter{v}
			seen(t, s, v, append(append([]client.Object{}, nodes...), tc.objs...)...)
			got, err := s.Place(newPod("p", "", "", withClaims(tc.claims...)))
			if err != nil {
				got = err.Message
			}
			if got != tc.want && !strings.HasPrefix(got, tc.want+" ") {
				t.Errorf("Place = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestEphemeralClaimIsWaitedFor(t *testing.T) {
	s := NewState()
	v := newVolumes(nil, s, nil)
	s.outside = []outsideFilter{v}
	s.SetNode(newNode("a", "1", "1Gi"))
	pod := newPod("p", "", "", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
	})
	const want = `0/1 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim "p-scratch".`
	if _, err := s.Place(pod); err == nil || !strings.HasPrefix(err.Message, want) || !err.Plugins.Has(VolumeBinding) {
		t.Errorf("Place = %v", err)
	}
}

func TestPodsWithoutClaimsCostNothing(t *testing.T) {
	s := NewState()
	v := newVolumes(nil, s, nil)
	pod := newPod("p", "", "", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}}}
	})
	if allocs := testing.AllocsPerRun(100, func() { _, _ = v.prepare(pod); _ = sameClaims(pod, pod) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// provisioner does what the volume controller does once a node is chosen.
func (w *world) provisioner(name string) {
	w.t.Helper()
	claim := &corev1.PersistentVolumeClaim{}
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, claim); err != nil {
		w.t.Fatal(err)
	}
	node := claim.Annotations[storagehelpers.AnnSelectedNode]
	if node == "" {
		w.t.Fatalf("no node is chosen for claim %s", name)
	}
	pv := newPV("pv-"+name, *claim.Spec.StorageClassName, node, func(pv *corev1.PersistentVolume) {
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: name, UID: claim.UID}
		pv.Status.Phase = corev1.VolumeBound
	})
	next := claim.DeepCopy()
	boundTo(pv.Name)(next)
	if err := errors.Join(w.Create(context.Background(), pv), w.Update(context.Background(), next)); err != nil {
		w.t.Fatal(err)
	}
}

func TestPodWaitsForItsVolume(t *testing.T) {
	class := newClass("later", storagev1.VolumeBindingWaitForFirstConsumer, "disk.example")
	inWorld(t, []client.Object{newNode("a", "1", "1Gi", label(corev1.LabelHostname, "a")), class, newClaim("data", "later"), newPod("p", "", "", withClaims("data"))}, func(w *world) {
		w.wait(time.Minute)
		if node := w.pod("p").Spec.NodeName; node != "" {
			t.Fatalf("bound to %q before its volume", node)
		}
		w.provisioner("data")
		w.wait(time.Second)
		if node := w.pod("p").Spec.NodeName; node != "a" {
			t.Errorf("pod is on %q", node)
		}
		if n := len(w.scheduler.volumes.reserved) + len(w.scheduler.volumes.assumedClaims) + len(w.scheduler.volumes.assumedPVs); n != 0 {
			t.Errorf("%d reservations left", n)
		}
	})
}

func TestPodsDoNotShareOneVolume(t *testing.T) {
	class := newClass("static", storagev1.VolumeBindingWaitForFirstConsumer, storagehelpers.NotSupportedProvisioner)
	objs := []client.Object{newNode("a", "4", "4Gi", label(corev1.LabelHostname, "a")), class, newPV("pv", "static", "a"),
		newClaim("one", "static"), newClaim("two", "static"), newPod("p1", "", "", withClaims("one")), newPod("p2", "", "", withClaims("two"))}
	inWorld(t, objs, func(w *world) {
		pv := &corev1.PersistentVolume{}
		if err := w.Get(t.Context(), types.NamespacedName{Name: "pv"}, pv); err != nil || pv.Spec.ClaimRef == nil {
			t.Fatalf("the volume is reserved for %v, %v", pv.Spec.ClaimRef, err)
		}
		taken := pv.Spec.ClaimRef.Name
		claim := &corev1.PersistentVolumeClaim{}
		if err := w.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: taken}, claim); err != nil {
			t.Fatal(err)
		}
		next := claim.DeepCopy()
		boundTo("pv")(next)
		if err := w.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		placed, waiting := "p1", "p2"
		if taken == "two" {
			placed, waiting = "p2", "p1"
		}
		if w.pod(placed).Spec.NodeName != "a" || w.pod(waiting).Spec.NodeName != "" {
			t.Errorf("%s on %q, %s on %q", placed, w.pod(placed).Spec.NodeName, waiting, w.pod(waiting).Spec.NodeName)
		}
		if c := conditionOf(w.pod(waiting), corev1.PodScheduled); !strings.Contains(c.Message, "didn't find available persistent volumes to bind") {
			t.Errorf("condition %q", c.Message)
		}
		// Another volume is news for it.
		if err := w.Create(t.Context(), newPV("pv2", "static", "a")); err != nil {
			t.Fatal(err)
		}
		w.wait(20 * time.Second)
		if err := w.Get(t.Context(), types.NamespacedName{Name: "pv2"}, pv); err != nil || pv.Spec.ClaimRef == nil {
			t.Errorf("the second volume is reserved for %v, %v", pv.Spec.ClaimRef, err)
		}
	})
}

func TestBindingThatFailsIsUndone(t *testing.T) {
	class := newClass("later", storagev1.VolumeBindingWaitForFirstConsumer, "disk.example")
	objs := []client.Object{newNode("a", "1", "1Gi", label(corev1.LabelHostname, "a")), class, newClaim("data", "later"), newPod("p", "", "", withClaims("data"))}
	inWorld(t, objs, func(w *world) {
		// The provisioner cannot use the node, and says so by taking the choice back.
		claim := &corev1.PersistentVolumeClaim{}
		if err := w.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: "data"}, claim); err != nil {
			t.Fatal(err)
		}
		next := claim.DeepCopy()
		next.Annotations = map[string]string{"x": "y"}
		if err := w.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		w.wait(100 * time.Millisecond)
		if c := conditionOf(w.pod("p"), corev1.PodScheduled); !strings.Contains(c.Message, `running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "data"`) {
			t.Errorf("condition %q", c.Message)
		}
		w.wait(time.Minute) // it is tried again
		w.provisioner("data")
		w.wait(time.Minute)
		if w.pod("p").Spec.NodeName != "a" {
			t.Error("the pod was not bound in the end")
		}
	})
	fails := 0
	inWorld(t, objs[:3], func(w *world) {
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if _, ok := write.Object.(*corev1.PersistentVolumeClaim); ok && fails < 2 {
				fails++
				return errors.New("disk is full")
			}
			return nil
		})
		w.add(newPod("p", "", "", withClaims("data")))
		w.wait(time.Minute)
		w.provisioner("data")
		w.wait(time.Second)
		if w.pod("p").Spec.NodeName != "a" {
			t.Error("the pod was not bound after failed writes")
		}
	})
}

func TestOncePodClaimIsFreed(t *testing.T) {
	objs := []client.Object{newNode("a", "1", "1Gi"), newNode("b", "1", "1Gi"), newPV("pv", "later", ""),
		newClaim("data", "later", boundTo("pv"), modes(corev1.ReadWriteOncePod)), newPod("old", "1", "", on("a"), withClaims("data")),
		newPod("other", "900m", "", on("a"))}
	inWorld(t, objs, func(w *world) {
		w.add(newPod("p", "500m", "", withClaims("data")))
		w.wait(time.Second)
		if w.pod("p").Spec.NodeName != "" {
			t.Fatal("two pods use the claim")
		}
		w.gone("old")
		w.wait(20 * time.Second)
		if node := w.pod("p").Spec.NodeName; node != "b" {
			t.Errorf("pod is on %q, want b", node)
		}
	})
}
