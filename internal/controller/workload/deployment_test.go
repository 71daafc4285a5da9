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
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

// conditionsOf prints conditions as "Type=Status Reason: Message".
func conditionsOf(d *appsv1.Deployment) []string {
	var out []string
	for _, c := range d.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message))
	}
	slices.Sort(out)
	return out
}

func TestDeploymentFirstRollout(t *testing.T) {
	inWorld(t, []client.Object{newDeployment(3)}, func(w *world) {
		time.Sleep(time.Second)
		synctest.Wait()
		hash := TemplateHash(&corev1.PodTemplateSpec{ObjectMeta: template("nginx:1").ObjectMeta, Spec: template("nginx:1").Spec}, nil)
		rs := w.rs("web-" + hash)
		if rs.Labels["pod-template-hash"] != hash || rs.Spec.Selector.MatchLabels["pod-template-hash"] != hash || rs.Spec.Template.Labels["pod-template-hash"] != hash {
			t.Errorf("hash label missing: %v, %v, %v", rs.Labels, rs.Spec.Selector, rs.Spec.Template.Labels)
		}
		want := map[string]string{
			"deployment.kubernetes.io/revision": "1", "deployment.kubernetes.io/desired-replicas": "3",
			"deployment.kubernetes.io/max-replicas": "4", "team": "shop",
		}
		if diff := cmp.Diff(want, rs.Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}
		wantConditions := []string{
			"Available=False MinimumReplicasUnavailable: Deployment does not have minimum availability.",
			fmt.Sprintf("Progressing=True ReplicaSetUpdated: ReplicaSet %q is progressing.", rs.Name),
		}
		if diff := cmp.Diff(wantConditions, conditionsOf(w.deployment())); diff != "" {
			t.Errorf("conditions before pods are ready (-want +got):\n%s", diff)
		}
		w.settle()
		d := w.deployment()
		wantConditions = []string{
			"Available=True MinimumReplicasAvailable: Deployment has minimum availability.",
			fmt.Sprintf("Progressing=True NewReplicaSetAvailable: ReplicaSet %q has successfully progressed.", rs.Name),
		}
		if diff := cmp.Diff(wantConditions, conditionsOf(d)); diff != "" {
			t.Errorf("conditions at the end (-want +got):\n%s", diff)
		}
		s := d.Status
		if s.Replicas != 3 || s.UpdatedReplicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.UnavailableReplicas != 0 ||
			s.TerminatingReplicas == nil || d.Annotations[annotationRevision] != "1" {
			t.Errorf("status %+v, revision %q", s, d.Annotations[annotationRevision])
		}
		if !slices.Contains(w.events.all(), "Normal ScalingReplicaSet Scaled up replica set "+rs.Name+" from 0 to 3") {
			t.Errorf("events %q", w.events.all())
		}
	})
}

// watchLimits fails the test when pods exceed the surge or readiness falls too low.
func watchLimits(w *world, most, leastReady int) {
	w.SetBeforeWrite(func(write controllertest.Write) error {
		if _, ok := write.Object.(*corev1.Pod); !ok {
			return nil
		}
		all, ready := 0, 0
		for _, pod := range w.pods() {
			if active(&pod) {
				all++
				if _, ok := readySince(&pod); ok {
					ready++
				}
			}
		}
		switch {
		case write.Verb == "create" && all >= most:
			w.t.Errorf("a pod is created beside %d, want at most %d in all", all, most)
		case write.Verb == "delete" && write.Object.GetDeletionTimestamp() == nil && ready < leastReady:
			w.t.Errorf("a pod is deleted with %d ready, want at least %d", ready, leastReady)
		}
		return nil
	})
}

func TestDeploymentRollingUpdateAndRollback(t *testing.T) {
	inWorld(t, []client.Object{newDeployment(10)}, func(w *world) {
		w.settle()
		watchLimits(w, 11, 9)
		w.change(func(d *appsv1.Deployment) { d.Spec.Template = template("nginx:2") })
		w.settle()
		sets := w.replicaSets()
		if len(sets) != 2 || len(w.pods()) != 10 {
			t.Fatalf("%d sets and %d pods, want 2 and 10", len(sets), len(w.pods()))
		}
		for _, pod := range w.pods() {
			if pod.Spec.Containers[0].Image != "nginx:2" {
				t.Errorf("pod %s has image %s", pod.Name, pod.Spec.Containers[0].Image)
			}
		}
		// kubectl rollout undo writes the old template back.
		w.change(func(d *appsv1.Deployment) { d.Spec.Template = template("nginx:1") })
		w.settle()
		d := w.deployment()
		if len(w.replicaSets()) != 2 || d.Annotations[annotationRevision] != "3" {
			t.Errorf("%d sets, revision %s; want 2, 3", len(w.replicaSets()), d.Annotations[annotationRevision])
		}
		first := w.rs("web-" + TemplateHash(&d.Spec.Template, nil))
		if first.Annotations[annotationRevision] != "3" || first.Annotations[annotationRevisionHistory] != "1" {
			t.Errorf("annotations %v, want revision 3, history 1", first.Annotations)
		}
	})
}

func TestDeploymentRecreate(t *testing.T) {
	recreate := func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	inWorld(t, []client.Object{newDeployment(4, recreate)}, func(w *world) {
		w.settle()
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if pod, ok := write.Object.(*corev1.Pod); ok && write.Verb == "create" {
				for _, other := range w.pods() {
					if other.Spec.Containers[0].Image != pod.Spec.Containers[0].Image {
						t.Errorf("%s is created while %s is there", pod.Spec.Containers[0].Image, other.Name)
					}
				}
			}
			return nil
		})
		w.change(func(d *appsv1.Deployment) { d.Spec.Template = template("nginx:2") })
		w.settle()
		if d := w.deployment(); d.Status.UpdatedReplicas != 4 || len(w.pods()) != 4 {
			t.Errorf("status %+v with %d pods", d.Status, len(w.pods()))
		}
	})
}

func TestDeploymentPauseScaleAndHistory(t *testing.T) {
	limit := int32(2)
	inWorld(t, []client.Object{newDeployment(3, func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = &limit })}, func(w *world) {
		w.settle()
		w.change(func(d *appsv1.Deployment) { d.Spec.Paused, d.Spec.Template = true, template("nginx:2") })
		w.settle()
		if len(w.replicaSets()) != 1 {
			t.Error("a paused deployment rolled out")
		}
		if got := conditionsOf(w.deployment())[1]; got != "Progressing=Unknown DeploymentPaused: Deployment is paused" {
			t.Errorf("condition %q", got)
		}
		w.change(func(d *appsv1.Deployment) { five := int32(5); d.Spec.Replicas = &five })
		w.settle()
		if n := len(w.pods()); n != 5 {
			t.Errorf("%d pods while paused and scaled to 5", n)
		}
		w.change(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.settle()
		for i := 3; i < 8; i++ {
			w.change(func(d *appsv1.Deployment) { d.Spec.Template = template(fmt.Sprintf("nginx:%d", i)) })
			w.settle()
		}
		w.settle()
		var revisions []string
		for _, rs := range w.replicaSets() {
			revisions = append(revisions, rs.Annotations[annotationRevision])
		}
		slices.Sort(revisions)
		if diff := cmp.Diff([]string{"5", "6", "7"}, revisions); diff != "" {
			t.Errorf("revisions kept (-want +got):\n%s", diff)
		}
	})
}

func TestDeploymentDeadline(t *testing.T) {
	inWorld(t, []client.Object{newDeployment(2)}, func(w *world) {
		w.settle()
		w.sick = func(pod *corev1.Pod) bool { return pod.Spec.Containers[0].Image == "broken" }
		w.change(func(d *appsv1.Deployment) { d.Spec.Template = template("broken") })
		w.settle()
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if c := findCondition(&w.deployment().Status, appsv1.DeploymentProgressing); c.Reason != reasonUpdated {
			t.Errorf("after 9m: %s", c.Reason)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		c := findCondition(&w.deployment().Status, appsv1.DeploymentProgressing)
		if c.Reason != "ProgressDeadlineExceeded" || c.Status != corev1.ConditionFalse || !strings.HasSuffix(c.Message, "has timed out progressing.") {
			t.Errorf("after 11m: %+v", c)
		}
		w.change(func(d *appsv1.Deployment) { d.Spec.Template = template("nginx:1") })
		w.settle()
		if c := findCondition(&w.deployment().Status, appsv1.DeploymentProgressing); c.Reason != reasonNewAvailable {
			t.Errorf("after the rollback: %+v", c)
		}
	})
}

func TestDeploymentHashCollision(t *testing.T) {
	d := newDeployment(1)
	hash := TemplateHash(&d.Spec.Template, nil)
	inWorld(t, []client.Object{newRS("web-"+hash, 0)}, func(w *world) {
		foreign := w.rs("web-" + hash)
		foreign.Labels = map[string]string{"app": "other"}
		if err := w.Update(context.Background(), foreign); err != nil {
			t.Fatal(err)
		}
		if err := w.Create(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		w.settle()
		got := w.deployment().Status.CollisionCount
		one := int32(1)
		if got == nil || *got != 1 || len(w.pods()) != 1 {
			t.Fatalf("collisionCount %v, %d pods", got, len(w.pods()))
		}
		w.rs("web-" + TemplateHash(&d.Spec.Template, &one))
	})
}

func TestDeploymentCreateError(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if _, ok := write.Object.(*appsv1.ReplicaSet); ok && write.Verb == "create" {
				return errors.New("no room")
			}
			return nil
		})
		if err := w.Create(context.Background(), newDeployment(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		got := conditionsOf(w.deployment())
		if len(got) != 1 || !strings.HasPrefix(got[0], "Progressing=False ReplicaSetCreateError: Failed to create new replica set \"web-") {
			t.Errorf("conditions %q", got)
		}
	})
}

// TestCrashBetweenWrites lets every write after the Nth fail until the controllers are
// started again, for each N: the end is the same and the limits are kept on the way.
func TestCrashBetweenWrites(t *testing.T) {
	for name, strategy := range map[string]func(*appsv1.Deployment){
		"rolling": func(*appsv1.Deployment) {},
		"recreate": func(d *appsv1.Deployment) {
			d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		},
	} {
		t.Run(name, func(t *testing.T) {
			undisturbed, writes := crashRun(t, strategy, math.MaxInt)
			for n := 0; n <= writes; n++ {
				if got, _ := crashRun(t, strategy, n); got != undisturbed {
					t.Fatalf("crash after write %d ends in\n%s\nwant\n%s", n, got, undisturbed)
				}
			}
		})
	}
}

// crashRun rolls 4 pods to a new template with a crash after so many writes of the
// controllers. It returns the end state and how many writes there were.
func crashRun(t *testing.T, strategy func(*appsv1.Deployment), after int) (end string, writes int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, newDeployment(4, strategy)), t: t, events: &notes{}}
		var mu sync.Mutex // guards crashed and writes
		crashed := false
		w.SetBeforeWrite(func(write controllertest.Write) error {
			_, isPod := write.Object.(*corev1.Pod)
			_, isDeployment := write.Object.(*appsv1.Deployment)
			if (isPod && write.Sub == "status") || (isDeployment && write.Sub == "") {
				return nil // the node's or the user's, not a controller's
			}
			mu.Lock()
			defer mu.Unlock()
			if isPod && write.Verb == "create" && len(w.pods()) > 4 {
				t.Errorf("a pod is created beside %d after write %d, want at most 5 in all", len(w.pods()), writes)
			}
			crashed = crashed || writes >= after
			if crashed {
				return errors.New("crashed")
			}
			writes++
			return nil
		})
		for phase, image := range []string{"nginx:1", "nginx:2"} {
			for life := 0; ; life++ {
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				w.start(ctx, &running)
				if phase == 1 && life == 0 {
					w.change(func(d *appsv1.Deployment) { d.Spec.Template = template(image) })
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
		end = summary(w)
	})
	return end, writes
}

// summary is what must not depend on crashes on the way.
func summary(w *world) string {
	d := w.deployment()
	var out []string
	for _, rs := range w.replicaSets() {
		out = append(out, fmt.Sprintf("%s %s wants %d has %d revision %s", rs.Name, rs.Spec.Template.Spec.Containers[0].Image,
			*rs.Spec.Replicas, rs.Status.AvailableReplicas, rs.Annotations[annotationRevision]))
	}
	for _, pod := range w.pods() {
		out = append(out, "pod "+pod.Spec.Containers[0].Image)
	}
	out = append(out, conditionsOf(d)...)
	out = append(out, fmt.Sprintf("updated %d of %d, revision %s", d.Status.UpdatedReplicas, d.Status.Replicas, d.Annotations[annotationRevision]))
	return strings.Join(out, "\n")
}

func TestTemplateHashIsUpstreams(t *testing.T) {
	one := int32(1)
	tmpl := &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Image: "nginx:1.27",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m")}},
		}}},
	}
	// Values computed by kube-controller-manager 1.36.3's own function.
	for name, tc := range map[string]struct {
		template  *corev1.PodTemplateSpec
		collision *int32
		want      string
	}{
		"plain":     {tmpl, nil, "77b9665db5"},
		"collision": {tmpl, &one, "64848ffd56"},
		"empty":     {&corev1.PodTemplateSpec{}, nil, "85748b7f68"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := TemplateHash(tc.template, tc.collision); got != tc.want {
				t.Errorf("TemplateHash = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestFenceposts(t *testing.T) {
	for name, tc := range map[string]struct {
		surge, unavailable            string
		replicas                      int32
		wantSurge, wantMaxUnavailable int32
	}{
		"a quarter of 10":       {"25%", "25%", 10, 3, 2},
		"a quarter of 1":        {"25%", "25%", 1, 1, 0},
		"both round to zero":    {"0", "1%", 2, 0, 1},
		"more than there are":   {"0", "300%", 2, 0, 2},
		"nothing to keep":       {"1", "1", 0, 1, 0},
		"no surge, all at once": {"0", "100%", 5, 0, 5},
	} {
		t.Run(name, func(t *testing.T) {
			surge, unavailable := intstr.Parse(tc.surge), intstr.Parse(tc.unavailable)
			d := newDeployment(tc.replicas, func(d *appsv1.Deployment) {
				d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}
			})
			if s, u := maxSurge(d), maxUnavailable(d); s != tc.wantSurge || u != tc.wantMaxUnavailable {
				t.Errorf("surge %d, unavailable %d; want %d, %d", s, u, tc.wantSurge, tc.wantMaxUnavailable)
			}
		})
	}
}

func TestProportionalScaling(t *testing.T) {
	set := func(name, image string, age time.Duration, replicas, most int32) *appsv1.ReplicaSet {
		rs := newRS(name, replicas)
		rs.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0).Add(-age))
		rs.Spec.Template = template(image)
		rs.Annotations = map[string]string{annotationDesired: "10", annotationMax: fmt.Sprint(most), "team": "shop"}
		return rs
	}
	for name, tc := range map[string]struct {
		to   int32
		sets []*appsv1.ReplicaSet
		want map[string]int32
	}{
		"up by half": {15, []*appsv1.ReplicaSet{set("new", "nginx:1", 0, 5, 13), set("old", "nginx:0", time.Hour, 8, 13)}, map[string]int32{"new": 7, "old": 11}},
		"down":       {5, []*appsv1.ReplicaSet{set("new", "nginx:1", 0, 5, 13), set("old", "nginx:0", time.Hour, 8, 13)}, map[string]int32{"new": 3, "old": 5}},
		"to zero":    {0, []*appsv1.ReplicaSet{set("new", "nginx:1", 0, 5, 13), set("old", "nginx:0", time.Hour, 8, 13)}, map[string]int32{"new": 0, "old": 0}},
		"one active": {20, []*appsv1.ReplicaSet{set("new", "nginx:1", 0, 0, 13), set("old", "nginx:0", time.Hour, 8, 13)}, map[string]int32{"old": 20}},
	} {
		t.Run(name, func(t *testing.T) {
			three := intstr.FromInt32(3)
			d := newDeployment(tc.to, func(d *appsv1.Deployment) { d.Spec.Strategy.RollingUpdate.MaxSurge = &three })
			p := planDeployment(rollout{d: d, sets: tc.sets, now: time.Unix(1e9, 0)})
			got := map[string]int32{}
			for _, m := range p.update {
				if m.replicas != replicasOf(m.rs) {
					got[m.rs.Name] = m.replicas
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("sizes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeploymentRollbackAnnotation(t *testing.T) {
	inWorld(t, []client.Object{newDeployment(2)}, func(w *world) {
		w.settle()
		w.change(func(d *appsv1.Deployment) { d.Spec.Template, d.Annotations["team"] = template("nginx:2"), "new" })
		w.settle()
		for _, step := range []struct{ revision, event, image, team string }{
			{"0", `Normal DeploymentRollback Rolled back deployment "web" to revision 1`, "nginx:1", "shop"},
			{"3", `Warning DeploymentRollbackTemplateUnchanged The rollback revision contains the same template as current deployment "web"`, "nginx:1", "shop"},
			{"9", "Warning DeploymentRollbackRevisionNotFound Unable to find the revision to rollback to.", "nginx:1", "shop"},
		} {
			w.change(func(d *appsv1.Deployment) { d.Annotations[appsv1.DeprecatedRollbackTo] = step.revision })
			w.settle()
			d := w.deployment()
			if !slices.Contains(w.events.all(), step.event) || d.Spec.Template.Spec.Containers[0].Image != step.image || d.Annotations["team"] != step.team {
				t.Errorf("to %s: image %s, annotations %v, events %q", step.revision, d.Spec.Template.Spec.Containers[0].Image, d.Annotations, w.events.all())
			}
			if _, there := d.Annotations[appsv1.DeprecatedRollbackTo]; there || d.Status.UpdatedReplicas != 2 {
				t.Errorf("to %s: the request is there: %v, status %+v", step.revision, there, d.Status)
			}
		}
	})
}
