package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newSet(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	history, from := int32(10), int32(0)
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Selector: selector(), Template: template("nginx:1"), ServiceName: "db", RevisionHistoryLimit: &history,
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &from},
			},
		},
	}
	for _, f := range change {
		f(set)
	}
	return set
}

func parallel(set *appsv1.StatefulSet) { set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

// withClaims gives a set one claim template and a retention policy.
func withClaims(whenDeleted, whenScaled appsv1.PersistentVolumeClaimRetentionPolicyType) func(*appsv1.StatefulSet) {
	return func(set *appsv1.StatefulSet) {
		set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data", Labels: map[string]string{"tier": "fast"}}}}
		set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: whenDeleted, WhenScaled: whenScaled}
	}
}

const (
	retainClaims = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	deleteClaims = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
)

func (w *world) set() *appsv1.StatefulSet {
	w.t.Helper()
	var set appsv1.StatefulSet
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "db"}, &set); err != nil {
		w.t.Fatal(err)
	}
	return set.DeepCopy()
}

func (w *world) changeSet(f func(set *appsv1.StatefulSet)) {
	w.t.Helper()
	set := w.set()
	f(set)
	if err := w.Update(context.Background(), set); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) revisions() []appsv1.ControllerRevision {
	w.t.Helper()
	var list appsv1.ControllerRevisionList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func (w *world) claims() []corev1.PersistentVolumeClaim {
	w.t.Helper()
	var list corev1.PersistentVolumeClaimList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

// images prints the pods as "name image", in order.
func (w *world) images() string {
	var out []string
	for _, pod := range w.pods() {
		out = append(out, pod.Name+" "+pod.Spec.Containers[0].Image)
	}
	return strings.Join(out, ", ")
}

// planned prints a plan: phases between semicolons.
func planned(p setPlan) string {
	var phases []string
	for _, steps := range p.phases {
		var out []string
		for _, step := range steps {
			for _, action := range step.actions {
				text := string(action) + " " + step.pod.Name
				if action == actCreate {
					text += "@" + revisionOfPod(step.pod)
				}
				out = append(out, text)
			}
		}
		phases = append(phases, strings.Join(out, ", "))
	}
	return strings.Join(phases, "; ")
}

// setPods makes pods from "0@r1 1@r2:pending 2@r1:gone": ordinal, revision and state
// (ready if none is given).
func setPods(set *appsv1.StatefulSet, text string, now time.Time) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, ":")
		ordinal, revision, _ := strings.Cut(word, "@")
		pod := newSetPod(set, &set.Spec.Template, revision, 0)
		pod.Name = "db-" + ordinal
		setIdentity(set, pod)
		setStorage(set, pod)
		pod.UID = types.UID("uid-" + ordinal)
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		switch state {
		case "pending":
			pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
		case "failed":
			pod.Status = corev1.PodStatus{Phase: corev1.PodFailed}
		case "fresh":
			pod.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
		case "gone":
			at := metav1.NewTime(now)
			pod.DeletionTimestamp = &at
		case "renamed":
			delete(pod.Labels, appsv1.StatefulSetPodNameLabel)
		}
		pods = append(pods, pod)
	}
	return pods
}

func TestStatefulSetPlan(t *testing.T) {
	now := time.Unix(1e9, 0)
	partitioned := func(n int32) func(*appsv1.StatefulSet) {
		return func(set *appsv1.StatefulSet) { set.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
	}
	onDelete := func(set *appsv1.StatefulSet) {
		set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	}
	starting := func(n int32) func(*appsv1.StatefulSet) {
		return func(set *appsv1.StatefulSet) { set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: n} }
	}
	minReady := func(set *appsv1.StatefulSet) { set.Spec.MinReadySeconds = 10 }
	two := func(set *appsv1.StatefulSet) {
		n := intstr.FromInt32(2)
		set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &n
	}
	for name, tc := range map[string]struct {
		replicas int32
		change   []func(*appsv1.StatefulSet)
		pods     string
		gated    bool
		want     string
	}{
		"the first one":                      {3, nil, "", false, "create db-0@r2"},
		"waits for the one before":           {3, nil, "0@r2:pending", false, "claims db-0"},
		"goes on":                            {3, nil, "0@r2", false, "create db-1@r2"},
		"waits until it is available":        {3, []func(*appsv1.StatefulSet){minReady}, "0@r2:fresh", false, ""},
		"fills a hole":                       {3, nil, "0@r2 2@r2", false, "create db-1@r2"},
		"waits for one that goes":            {3, nil, "0@r2:gone 1@r2", false, ""},
		"replaces a failed one":              {3, nil, "0@r2 1@r2:failed 2@r2", false, "delete db-1"},
		"parallel":                           {3, []func(*appsv1.StatefulSet){parallel}, "1@r2:pending", false, "create db-0@r2, claims db-1, create db-2@r2"},
		"parallel with a failed one":         {2, []func(*appsv1.StatefulSet){parallel}, "0@r1:failed 1@r2", false, "delete db-0"},
		"starting at 5":                      {2, []func(*appsv1.StatefulSet){starting(5)}, "5@r2", false, "create db-6@r2"},
		"a new start takes the old away":     {2, []func(*appsv1.StatefulSet){starting(1)}, "0@r2 1@r2 2@r2", false, "delete db-0"},
		"scales down from the top":           {1, nil, "0@r2 1@r2 2@r2", false, "delete db-2"},
		"scaling down waits":                 {1, nil, "0@r2 1@r2 2@r2:gone", false, ""},
		"scaling down waits for a sick one":  {1, nil, "0@r2:pending 1@r2 2@r2", false, "claims db-0"},
		"scaling down a sick one":            {1, nil, "0@r2 1@r2:pending 2@r2:pending", false, ""},
		"the sick one goes":                  {1, nil, "0@r2 1@r2:pending", false, "delete db-1"},
		"parallel scaling down":              {1, []func(*appsv1.StatefulSet){parallel}, "0@r2:pending 1@r2 2@r2 3@r2:gone", false, "claims db-0; delete db-2, delete db-1"},
		"rolls from the top":                 {3, nil, "0@r1 1@r1 2@r1", false, "delete db-2"},
		"a roll waits":                       {3, nil, "0@r1 1@r1 2@r2:gone", false, ""},
		"a roll goes on":                     {3, nil, "0@r1 1@r1 2@r2", false, "delete db-1"},
		"a roll in parallel is one by one":   {3, []func(*appsv1.StatefulSet){parallel}, "0@r1 1@r1 2@r2:pending", false, "claims db-2"},
		"a partition stops it":               {3, []func(*appsv1.StatefulSet){partitioned(2)}, "0@r1 1@r1 2@r2", false, ""},
		"below the partition is the old one": {3, []func(*appsv1.StatefulSet){partitioned(2)}, "0@r1 2@r2", false, "create db-1@r1"},
		"a partition counts from the start":  {3, []func(*appsv1.StatefulSet){partitioned(1), starting(4)}, "", false, "create db-4@r1"},
		"a partition beyond all":             {2, []func(*appsv1.StatefulSet){partitioned(9)}, "0@r1 1@r1", false, ""},
		"on delete":                          {2, []func(*appsv1.StatefulSet){onDelete}, "0@r1 1@r1", false, ""},
		"on delete makes the new one":        {2, []func(*appsv1.StatefulSet){onDelete}, "0@r1", false, "create db-1@r2"},
		"maxUnavailable is off by default":   {4, []func(*appsv1.StatefulSet){two}, "0@r1 1@r1 2@r1 3@r1", false, "delete db-3"},
		"maxUnavailable":                     {4, []func(*appsv1.StatefulSet){two}, "0@r1 1@r1 2@r1 3@r1", true, "delete db-3, delete db-2"},
		"maxUnavailable counts what is down": {4, []func(*appsv1.StatefulSet){two, parallel}, "0@r1 1@r1 2@r1 3@r2:pending", true, "claims db-3; delete db-2"},
		"mends a label":                      {2, nil, "0@r2 1@r2:renamed", false, "mend db-1"},
	} {
		t.Run(name, func(t *testing.T) {
			set := newSet(tc.replicas, tc.change...)
			plan := planStatefulSet(setState{
				set: set, pods: setPods(set, tc.pods, now), gated: tc.gated, now: now,
				current: setRevision{"r1", &set.Spec.Template}, update: setRevision{"r2", &set.Spec.Template},
				claim: func(string) *corev1.PersistentVolumeClaim { return nil },
			})
			if got := planned(plan); got != tc.want {
				t.Errorf("plan %q, want %q", got, tc.want)
			}
		})
	}
}

func TestClaimOwners(t *testing.T) {
	set := newSet(2, withClaims(retainClaims, retainClaims))
	set.UID = "set"
	ours := *metav1.NewControllerRef(set, statefulSetKind())
	for name, tc := range map[string]struct {
		deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType
		ordinal         string
		have            []metav1.OwnerReference
		want            string // owners after mending, or "match"
	}{
		"nobody":                         {retainClaims, retainClaims, "0", nil, "match"},
		"no longer the set":              {retainClaims, retainClaims, "0", []metav1.OwnerReference{ours}, ""},
		"the set":                        {deleteClaims, retainClaims, "0", nil, "StatefulSet set"},
		"the set of one that leaves":     {deleteClaims, retainClaims, "5", []metav1.OwnerReference{ours}, "match"},
		"not the pod that stays":         {retainClaims, deleteClaims, "1", nil, "match"},
		"the pod that leaves":            {retainClaims, deleteClaims, "5", nil, "Pod uid-5"},
		"the pod instead of the set":     {deleteClaims, deleteClaims, "5", []metav1.OwnerReference{ours}, "Pod uid-5"},
		"the set instead of the pod":     {deleteClaims, deleteClaims, "1", []metav1.OwnerReference{podRef("db-1", "uid-1")}, "StatefulSet set"},
		"an earlier set's is left alone": {deleteClaims, deleteClaims, "1", []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "old"}}, "match"},
		"somebody else controls it":      {deleteClaims, deleteClaims, "1", []metav1.OwnerReference{foreignRef()}, "match"},
		"beside somebody else":           {deleteClaims, deleteClaims, "1", []metav1.OwnerReference{foreignRef(), ours}, "Widget w"},
		"an owner that does not control": {deleteClaims, retainClaims, "1", []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "set"}}, "StatefulSet set"},
	} {
		t.Run(name, func(t *testing.T) {
			set := set.DeepCopy()
			withClaims(tc.deleted, tc.scaled)(set)
			pod := setPods(set, tc.ordinal+"@r1", time.Now())[0]
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: tc.have}}
			got := "match"
			if !ownersMatch(claim, set, pod) {
				var owners []string
				for _, ref := range ownersOf(claim, set, pod) {
					owners = append(owners, fmt.Sprintf("%s %s", ref.Kind, ref.UID))
				}
				got = strings.Join(owners, ", ")
			}
			if got != tc.want {
				t.Errorf("owners %q, want %q", got, tc.want)
			}
		})
	}
}

func podRef(name string, uid types.UID) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: uid, Controller: &yes, BlockOwnerDeletion: &yes}
}

func foreignRef() metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Widget", Name: "w", UID: "w", Controller: &yes}
}

func TestIdentity(t *testing.T) {
	for name, tc := range map[string]struct {
		pod, parent string
		ordinal     int
	}{
		"plain":     {"db-7", "db", 7},
		"dashes":    {"my-db-12", "my-db", 12},
		"no number": {"db-x", "", -1},
		"no dash":   {"db", "", -1},
		"too large": {"db-99999999999", "db", -1},
		"nothing":   {"db-", "", -1},
	} {
		t.Run(name, func(t *testing.T) {
			if parent, ordinal := identity(tc.pod); parent != tc.parent || ordinal != tc.ordinal {
				t.Errorf("identity = %q, %d; want %q, %d", parent, ordinal, tc.parent, tc.ordinal)
			}
		})
	}
}

func TestStatefulSetLife(t *testing.T) {
	inWorld(t, []client.Object{newSet(3, withClaims(retainClaims, retainClaims))}, func(w *world) {
		watchOrder(w)
		w.settle()
		if got, want := w.images(), "db-0 nginx:1, db-1 nginx:1, db-2 nginx:1"; got != want {
			t.Fatalf("pods %s, want %s", got, want)
		}
		revision := w.revisions()[0]
		pod := w.pods()[1]
		wantLabels := map[string]string{
			"app": "web", "statefulset.kubernetes.io/pod-name": "db-1", "apps.kubernetes.io/pod-index": "1", "controller-revision-hash": revision.Name,
		}
		if diff := cmp.Diff(wantLabels, pod.Labels); diff != "" {
			t.Errorf("labels (-want +got):\n%s", diff)
		}
		if pod.Spec.Hostname != "db-1" || pod.Spec.Subdomain != "db" || pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-db-1" {
			t.Errorf("host %q in %q with %+v", pod.Spec.Hostname, pod.Spec.Subdomain, pod.Spec.Volumes)
		}
		claim := w.claims()[1]
		if diff := cmp.Diff(map[string]string{"tier": "fast", "app": "web"}, claim.Labels); diff != "" || claim.Name != "data-db-1" || len(claim.OwnerReferences) != 0 {
			t.Errorf("claim %s owned by %v, labels (-want +got):\n%s", claim.Name, claim.OwnerReferences, diff)
		}
		zero := int32(0)
		want := appsv1.StatefulSetStatus{
			ObservedGeneration: 1, Replicas: 3, ReadyReplicas: 3, AvailableReplicas: 3, CurrentReplicas: 3, UpdatedReplicas: 3,
			CurrentRevision: revision.Name, UpdateRevision: revision.Name, CollisionCount: &zero,
		}
		if diff := cmp.Diff(want, w.set().Status); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		wantEvents := []string{
			"Normal SuccessfulCreate Create Claim data-db-0 Pod db-0 in StatefulSet db success",
			"Normal SuccessfulCreate Create Pod db-0 in StatefulSet db successful",
			"Normal SuccessfulCreate Create Claim data-db-1 Pod db-1 in StatefulSet db success",
			"Normal SuccessfulCreate Create Pod db-1 in StatefulSet db successful",
		}
		if diff := cmp.Diff(wantEvents, w.events.all()[:4]); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		w.changeSet(func(set *appsv1.StatefulSet) { *set.Spec.Replicas = 1 })
		w.settle()
		if got := w.images(); got != "db-0 nginx:1" || len(w.claims()) != 3 {
			t.Errorf("pods %s, %d claims; want one pod and all claims", got, len(w.claims()))
		}
		if got := w.events.all(); got[len(got)-1] != "Normal SuccessfulDelete Delete Pod db-1 in StatefulSet db successful" {
			t.Errorf("last event %q", got[len(got)-1])
		}
	})
}

// watchOrder fails the test when a pod is started or stopped out of order, or beside
// another one of its identity.
func watchOrder(w *world) { w.SetBeforeWrite(orderWatch(w)) }

func orderWatch(w *world) func(controllertest.Write) error {
	return func(write controllertest.Write) error {
		pod, ok := write.Object.(*corev1.Pod)
		if !ok || write.Sub != "" || (write.Verb != "create" && write.Verb != "delete") {
			return nil
		}
		if write.Verb == "delete" && pod.DeletionTimestamp != nil {
			return nil // the node's
		}
		ordinal := ordinalOf(pod)
		for _, other := range w.pods() {
			at := ordinalOf(&other)
			_, ready := readySince(&other)
			switch {
			case write.Verb == "create" && at == ordinal:
				w.t.Errorf("%s is created while one is there", pod.Name)
			case write.Verb == "create" && at < ordinal && (!ready || other.DeletionTimestamp != nil):
				w.t.Errorf("%s is created while %s is not ready", pod.Name, other.Name)
			case write.Verb == "delete" && at > ordinal && (!ready || other.DeletionTimestamp != nil):
				w.t.Errorf("%s is deleted while %s is not ready", pod.Name, other.Name)
			}
		}
		return nil
	}
}

// identityWatch fails the test when a pod is created beside another one of its identity.
func identityWatch(w *world) func(controllertest.Write) error {
	return func(write controllertest.Write) error {
		if pod, ok := write.Object.(*corev1.Pod); ok && write.Verb == "create" {
			for _, other := range w.pods() {
				if other.Labels[appsv1.PodIndexLabel] == pod.Labels[appsv1.PodIndexLabel] {
					w.t.Errorf("%s is created while %s is there", pod.Name, other.Name)
				}
			}
		}
		return nil
	}
}

func TestStatefulSetRollsAndRollsBack(t *testing.T) {
	inWorld(t, []client.Object{newSet(3)}, func(w *world) {
		w.settle()
		watchOrder(w)
		first := w.revisions()[0]
		w.changeSet(func(set *appsv1.StatefulSet) { set.Spec.Template = template("nginx:2") })
		w.settle()
		if got, want := w.images(), "db-0 nginx:2, db-1 nginx:2, db-2 nginx:2"; got != want {
			t.Errorf("pods %s, want %s", got, want)
		}
		if status := w.set().Status; status.CurrentRevision != status.UpdateRevision || status.CurrentRevision == first.Name || status.CurrentReplicas != 3 {
			t.Errorf("status %+v", status)
		}
		// A partition holds pods back; kubectl rollout undo writes the old template.
		two := int32(2)
		w.changeSet(func(set *appsv1.StatefulSet) {
			set.Spec.Template = template("nginx:1")
			set.Spec.UpdateStrategy.RollingUpdate.Partition = &two
		})
		w.settle()
		if got, want := w.images(), "db-0 nginx:2, db-1 nginx:2, db-2 nginx:1"; got != want {
			t.Errorf("pods %s, want %s", got, want)
		}
		status := w.set().Status
		if status.UpdateRevision != first.Name || status.UpdatedReplicas != 1 || status.CurrentReplicas != 2 || len(w.revisions()) != 2 {
			t.Errorf("status %+v with %d revisions", status, len(w.revisions()))
		}
		gone := w.pods()[0]
		if err := w.Delete(context.Background(), &gone); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if got, want := w.images(), "db-0 nginx:2, db-1 nginx:2, db-2 nginx:1"; got != want {
			t.Errorf("pods after one below the partition was deleted: %s, want %s", got, want)
		}
	})
}

func TestStatefulSetHistoryLimit(t *testing.T) {
	limit := int32(2)
	inWorld(t, []client.Object{newSet(1, func(set *appsv1.StatefulSet) { set.Spec.RevisionHistoryLimit = &limit })}, func(w *world) {
		w.settle()
		for i := 2; i < 8; i++ {
			w.changeSet(func(set *appsv1.StatefulSet) { set.Spec.Template = template(fmt.Sprintf("nginx:%d", i)) })
			w.settle()
		}
		var numbers []int64
		for _, revision := range w.revisions() {
			numbers = append(numbers, revision.Revision)
		}
		slices.Sort(numbers)
		if diff := cmp.Diff([]int64{5, 6, 7}, numbers); diff != "" {
			t.Errorf("revisions (-want +got):\n%s", diff)
		}
	})
}

func TestStatefulSetMinReadyFailedAndMended(t *testing.T) {
	inWorld(t, []client.Object{newSet(2, func(set *appsv1.StatefulSet) { set.Spec.MinReadySeconds = 30 })}, func(w *world) {
		w.settle()
		if got := w.images(); got != "db-0 nginx:1" {
			t.Errorf("pods %s before the first is available", got)
		}
		time.Sleep(31 * time.Second)
		w.settle()
		time.Sleep(31 * time.Second)
		w.settle()
		if status := w.set().Status; status.AvailableReplicas != 2 {
			t.Errorf("status %+v", status)
		}
		failed := w.pods()[1].DeepCopy()
		failed.Status.Phase = corev1.PodFailed
		if err := w.Status().Update(context.Background(), failed); err != nil {
			t.Fatal(err)
		}
		renamed := w.pods()[0].DeepCopy()
		renamed.Labels = map[string]string{"app": "web"}
		if err := w.Update(context.Background(), renamed); err != nil {
			t.Fatal(err)
		}
		w.settle()
		pods := w.pods()
		if len(pods) != 2 || pods[1].UID == failed.UID || pods[0].Labels["statefulset.kubernetes.io/pod-name"] != "db-0" {
			t.Errorf("pods %s, labels %v", w.images(), pods[0].Labels)
		}
	})
}

func TestStatefulSetAdoptsByName(t *testing.T) {
	orphan := func(name string) *corev1.Pod {
		pod := template("nginx:0")
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: pod.Labels}, Spec: pod.Spec}
	}
	inWorld(t, []client.Object{newSet(2), orphan("db-0"), orphan("other-1")}, func(w *world) {
		w.settle()
		if got, want := w.images(), "db-0 nginx:1, db-1 nginx:1, other-1 nginx:0"; got != want {
			t.Errorf("pods %s, want %s (adopted, then rolled)", got, want)
		}
		for _, pod := range w.pods() {
			if owned := metav1.GetControllerOf(&pod) != nil; owned != (pod.Name != "other-1") {
				t.Errorf("%s is owned: %v", pod.Name, owned)
			}
		}
	})
}

func TestStatefulSetClaimsOnTheirWayOut(t *testing.T) {
	inWorld(t, []client.Object{newSet(2, withClaims(deleteClaims, deleteClaims))}, func(w *world) {
		w.settle()
		if ref := w.claims()[1].OwnerReferences; len(ref) != 1 || ref[0].Kind != "StatefulSet" {
			t.Fatalf("owners %+v", ref)
		}
		w.changeSet(func(set *appsv1.StatefulSet) { *set.Spec.Replicas = 1 })
		w.settle()
		claim := w.claims()[1]
		if ref := claim.OwnerReferences; len(ref) != 1 || ref[0].Kind != "Pod" {
			t.Fatalf("owners after scaling down %+v", ref)
		}
		// The pod is gone, the claim will be: a new pod must not take it.
		w.changeSet(func(set *appsv1.StatefulSet) { *set.Spec.Replicas = 2 })
		w.settle()
		if got := w.images(); got != "db-0 nginx:1" {
			t.Errorf("pods %s while the claim of the earlier one is there", got)
		}
		if err := w.Delete(context.Background(), &claim); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		w.settle()
		if got := w.images(); got != "db-0 nginx:1, db-1 nginx:1" {
			t.Errorf("pods %s after the claim has gone", got)
		}
	})
}

func TestStatefulSetRevisionOfAnEarlierVersion(t *testing.T) {
	inWorld(t, []client.Object{newSet(1)}, func(w *world) {
		w.settle()
		before := w.pods()[0].UID
		old := w.revisions()[0].DeepCopy()
		old.Data.Raw = []byte(strings.Replace(string(old.Data.Raw), `"metadata":{`, `"metadata":{"creationTimestamp":null,`, 1))
		if err := w.Update(context.Background(), old); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if w.pods()[0].UID != before || len(w.revisions()) != 1 {
			t.Errorf("a revision that means the same led to a rollout: %d revisions", len(w.revisions()))
		}
	})
}

func TestStatefulSetRevisionCollision(t *testing.T) {
	set := newSet(1)
	patch, err := templatePatch(&set.Spec.Template)
	if err != nil {
		t.Fatal(err)
	}
	taken := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: revisionName("db", revisionHash(patch, 0))}}
	inWorld(t, []client.Object{set, taken}, func(w *world) {
		w.settle()
		status := w.set().Status
		if status.CollisionCount == nil || *status.CollisionCount != 1 || status.UpdateRevision != revisionName("db", revisionHash(patch, 1)) {
			t.Errorf("status %+v", status)
		}
	})
}

func TestRevisionIsUpstreams(t *testing.T) {
	thousand := int64(1000)
	patch, err := templatePatch(&corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{RunAsUser: &thousand}, Containers: []corev1.Container{{
			Name: "web", Image: "nginx:1.27", Command: []string{"sh", "-c", "echo <a> && b"},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m")}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Values computed by kube-controller-manager 1.36.3's own functions.
	want := `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"command":["sh","-c",` +
		`"echo \u003ca\u003e \u0026\u0026 b"],"image":"nginx:1.27","name":"web","resources":{"requests":{"cpu":"100m"}}}],` +
		`"securityContext":{"runAsUser":1000}}}}}`
	if string(patch) != want {
		t.Errorf("patch %s\nwant  %s", patch, want)
	}
	for collisions, want := range map[int32]string{0: "db-6d98cf6f7c", 1: "db-6d98cf6f7b"} {
		if got := revisionName("db", revisionHash(patch, collisions)); got != want {
			t.Errorf("name after %d collisions %s, want %s", collisions, got, want)
		}
	}
}

// TestStatefulSetCrashBetweenWrites lets every write after the Nth fail until the
// controllers are started again, for each N: the end is the same and the order is kept.
func TestStatefulSetCrashBetweenWrites(t *testing.T) {
	for name, change := range map[string][]func(*appsv1.StatefulSet){
		"ordered":  {withClaims(deleteClaims, deleteClaims)},
		"parallel": {withClaims(deleteClaims, retainClaims), parallel},
	} {
		t.Run(name, func(t *testing.T) {
			undisturbed, writes := crashSet(t, change, math.MaxInt)
			for n := 0; n <= writes; n++ {
				if got, _ := crashSet(t, change, n); got != undisturbed {
					t.Fatalf("crash after write %d ends in\n%s\nwant\n%s", n, got, undisturbed)
				}
			}
		})
	}
}

// crashSet starts 3 pods, rolls them to a new template and scales to 2, with a crash after
// so many writes of the controllers. It returns the end state and how many writes there were.
func crashSet(t *testing.T, change []func(*appsv1.StatefulSet), after int) (end string, writes int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, newSet(3, change...)), t: t, events: &notes{}}
		check := orderWatch(w)
		if w.set().Spec.PodManagementPolicy == appsv1.ParallelPodManagement {
			check = identityWatch(w)
		}
		var mu sync.Mutex // guards crashed and writes
		crashed := false
		w.SetBeforeWrite(func(write controllertest.Write) error {
			pod, isPod := write.Object.(*corev1.Pod)
			_, isSet := write.Object.(*appsv1.StatefulSet)
			if (isPod && (write.Sub == "status" || pod.DeletionTimestamp != nil)) || (isSet && write.Sub == "") {
				return nil // the node's or the user's, not a controller's
			}
			mu.Lock()
			defer mu.Unlock()
			if crashed = crashed || writes >= after; crashed {
				return errors.New("crashed")
			}
			writes++
			return check(write)
		})
		for phase, step := range []func(*appsv1.StatefulSet){
			nil,
			func(set *appsv1.StatefulSet) { set.Spec.Template = template("nginx:2") },
			func(set *appsv1.StatefulSet) { *set.Spec.Replicas = 2 },
		} {
			for life := 0; ; life++ {
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				w.start(ctx, &running)
				if phase > 0 && life == 0 {
					w.changeSet(step)
				}
				w.settle()
				cancel()
				running.Wait()
				if !crashed {
					break
				}
				crashed, after = false, math.MaxInt // the next life is spared
			}
		}
		end = summarizeSet(w)
	})
	return end, writes
}

// summarizeSet is what must not depend on crashes on the way.
func summarizeSet(w *world) string {
	out := []string{w.images()}
	for _, claim := range w.claims() {
		text := claim.Name
		for _, ref := range claim.OwnerReferences {
			text += " of " + ref.Kind + " " + ref.Name
		}
		out = append(out, text)
	}
	for _, revision := range w.revisions() {
		out = append(out, fmt.Sprintf("%s %d", revision.Name, revision.Revision))
	}
	status := w.set().Status
	out = append(out, fmt.Sprintf("%d of %d at %s, %d available", status.UpdatedReplicas, status.Replicas, status.CurrentRevision, status.AvailableReplicas))
	return strings.Join(out, "\n")
}

func BenchmarkStatefulSetPass(b *testing.B) {
	const count = 5000
	now := time.Unix(1e9, 0)
	set := newSet(count, withClaims(deleteClaims, retainClaims), parallel)
	set.UID = "set"
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, "%d@r2 ", i)
	}
	claims := map[string]*corev1.PersistentVolumeClaim{}
	for i := range count {
		claim := claimsOf(set, i)[0]
		claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, statefulSetKind())}
		claims[claim.Name] = claim
	}
	state := setState{
		set: set, pods: setPods(set, text.String(), now), now: now, current: setRevision{"r2", &set.Spec.Template}, update: setRevision{"r2", &set.Spec.Template},
		claim: func(name string) *corev1.PersistentVolumeClaim { return claims[name] },
	}
	b.ReportAllocs()
	for b.Loop() {
		if plan := planStatefulSet(state); len(plan.phases) > 0 {
			b.Fatal(planned(plan))
		}
	}
}
