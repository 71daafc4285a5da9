package gantrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/util/retry"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/autoscale"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/controller/disruption"
	"gantry.dev/gantry/internal/controller/gc"
	"gantry.dev/gantry/internal/controller/job"
	"gantry.dev/gantry/internal/controller/protection"
	"gantry.dev/gantry/internal/controller/service"
	"gantry.dev/gantry/internal/controller/volume"
	"gantry.dev/gantry/internal/controller/workload"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/volume/local"
)

// The story that TestFaults tells: how long it takes, and the most that may be at a time.
const (
	storyTime   = 8 * time.Minute
	storySeeds  = "GANTRY_FAULT_SEEDS" // how many seeds; default 2
	webReplicas = 4
	webSurge    = 1
	webLeast    = 2 // that a budget wants to be ready
	autoMost    = 3
)

// TestFaults tells one story to control planes that fare ever worse, and wants the end to be the
// same and no invariant broken on the way: controllers that crash after every write, and events that
// come late, twice, in another order, or not at all until a relist. A failure prints the seed.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	seeds := 2
	if text := os.Getenv(storySeeds); text != "" {
		var err error
		if seeds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	want := tellStory(t, controllertest.Faults{})
	for _, must := range []string{
		"web: replicas 4 updated 4 available 4", "sum: Failed", "plain: Complete", "active 0, last 00:05:00", "agent: 2 ready, 2 updated",
		"probe: 2 ready, 2 updated", "web has 4 endpoints", "claim data-db-2 Bound", "auto: 3 replicas wanted",
	} {
		if !strings.Contains(want, must) {
			t.Fatalf("undisturbed, the story does not end with %q:\n%s", must, want)
		}
	}
	for seed := range seeds {
		for name, faults := range map[string]controllertest.Faults{
			"a crash after every write": {CrashEvery: 1},
			"a crash now and then":      {CrashEvery: 5, Delay: time.Second, Duplicate: 0.3},
			"lost and late events":      {Delay: 2 * time.Second, Drop: 0.3, Relist: 15 * time.Second, Duplicate: 0.2},
			"stale reads":               {Stale: 3 * time.Second},
			"everything":                {CrashEvery: 2, Delay: time.Second, Drop: 0.2, Relist: 5 * time.Second, Duplicate: 0.2, Stale: 2 * time.Second},
		} {
			faults.Seed = uint64(seed) + 1
			t.Run(fmt.Sprintf("%s, seed %d", name, faults.Seed), func(t *testing.T) {
				if got := tellStory(t, faults); got != want {
					t.Errorf("seed %d: the end is\n%s\nwant\n%s", faults.Seed, got, want)
				}
			})
		}
	}
}

// faultyControllers are the controllers that have faults, by their accounts.
func faultyControllers(c *Cluster) map[string]func(ctrlclient.Client, controller.Informers, *events.Recorder) (controllertest.Runner, error) {
	type maker = func(ctrlclient.Client, controller.Informers, *events.Recorder) (controllertest.Runner, error)
	kinds := func() []controller.Kind {
		var kinds []controller.Kind
		for _, r := range c.ControlPlane.Registry().Resources() {
			if r.Primary && slices.Contains(r.Verbs, "watch") && r.Resource.Resource != "events" {
				kinds = append(kinds, controller.Kind{GVK: r.Kind, Resource: r.Resource.Resource, Namespaced: r.Namespaced})
			}
		}
		return kinds
	}
	return map[string]maker{
		"daemon-set-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return workload.NewDaemonSets(c, i, r, workload.Options{})
		},
		"endpointslice-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return service.New(c, i, r, service.Options{})
		},
		"persistent-volume-binder": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return volume.NewBinder(c, i, r, volume.Options{})
		},
		"pvc-protection-controller": func(c ctrlclient.Client, i controller.Informers, _ *events.Recorder) (controllertest.Runner, error) {
			return protection.New(c, i, protection.Options{Kind: protection.Claims})
		},
		"horizontal-pod-autoscaler": func(client ctrlclient.Client, i controller.Informers, _ *events.Recorder) (controllertest.Runner, error) {
			config := c.Config("horizontal-pod-autoscaler", user.SystemPrivilegedGroup)
			config.Transport = controllertest.Transport(client, config.Transport)
			return autoscale.New(client, i, autoscale.Options{Config: config})
		},
		"deployment-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return workload.NewDeployments(c, i, r, workload.Options{})
		},
		"replicaset-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return workload.NewReplicaSets(c, i, r, workload.Options{})
		},
		"statefulset-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return workload.NewStatefulSets(c, i, r, workload.Options{})
		},
		"job-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return job.New(c, i, r, job.Options{})
		},
		"cronjob-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return job.NewCronJobs(c, i, r, job.Options{})
		},
		"disruption-controller": func(c ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return disruption.New(c, i, r, disruption.Options{})
		},
		"generic-garbage-collector": func(client ctrlclient.Client, i controller.Informers, r *events.Recorder) (controllertest.Runner, error) {
			return gc.New(client, i, r, gc.Options{Kinds: kinds, Changed: c.ControlPlane.Registry().Changed})
		},
	}
}

// tellStory returns what is there in the end.
func tellStory(t *testing.T, faults controllertest.Faults) (end string) {
	synctest.Test(t, func(t *testing.T) {
		var accounts []string
		for account := range faultyControllers(nil) {
			accounts = append(accounts, account)
		}
		load := &busy{}
		c := Start(t, Options{Nodes: 2, WithoutControllers: accounts, Metrics: load})
		defer c.Stop()
		load.client.Store(&c.Client)
		for _, node := range []string{"node-0", "node-1"} {
			c.annotate(node, map[string]string{local.DirAnnotation: "/data/volumes"})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var lives atomic.Int64
		for account, newController := range faultyControllers(c) {
			client, informers, err := c.ControlPlane.As(&user.DefaultInfo{Name: account, Groups: []string{user.SystemPrivilegedGroup}}, "kube-controller-manager")
			if err != nil {
				t.Fatal(err)
			}
			recorder := c.ControlPlane.Events(events.Source{Component: account})
			running.Go(func() {
				n, err := controllertest.Live(ctx, client, informers, faults, func(c ctrlclient.Client, i controller.Informers) (controllertest.Runner, error) {
					return newController(c, i, recorder)
				})
				if err != nil {
					t.Errorf("%s: %v", account, err)
				}
				lives.Add(int64(n))
			})
		}
		s := &story{Cluster: c, t: t, faults: faults, pods: map[types.UID]*corev1.Pod{}, succeeded: map[string]map[types.UID]bool{}}
		stop := s.watch()
		s.tell()
		end = s.end()
		stop()
		cancel()
		running.Wait()
		t.Logf("seed %d: the controllers lived %d lives", faults.Seed, lives.Load())
		if least := int64(100); faults.CrashEvery == 1 && lives.Load() < least {
			t.Errorf("the controllers lived %d lives, want %d at least", lives.Load(), least)
		}
	})
	return end
}

// story is one telling.
type story struct {
	*Cluster
	t      *testing.T
	faults controllertest.Faults

	started int // pods

	mu        sync.Mutex // guards the fields below
	pods      map[types.UID]*corev1.Pod
	succeeded map[string]map[types.UID]bool // job to its pods that ever succeeded
	served    bool                          // all of web's pods were ready once
}

// watch checks the invariants at each change of a pod.
func (s *story) watch() (stop func()) {
	_, informers, err := s.ControlPlane.As(&user.DefaultInfo{Name: "observer", Groups: []string{user.SystemPrivilegedGroup}}, "test")
	if err != nil {
		s.t.Fatal(err)
	}
	stop, err = informer.Listen(s.t.Context(), informers, informer.Subscription{Object: &corev1.Pod{}, OnEvent: func(old, current ctrlclient.Object) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if current == nil {
			delete(s.pods, old.GetUID())
			return
		}
		s.pods[current.GetUID()] = current.(*corev1.Pod)
		s.checkLocked(current.(*corev1.Pod))
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	return stop
}

// checkLocked looks at what belongs together with a pod that has changed.
func (s *story) checkLocked(changed *corev1.Pod) {
	app := changed.Labels["app"]
	active, ready, names, nodes := 0, 0, map[string]int{}, map[string]int{}
	for _, pod := range s.pods {
		if pod.Labels["app"] != app {
			continue
		}
		if pod.DeletionTimestamp == nil && !over(pod) {
			active++
			names[pod.Name]++
			if pod.Status.Phase == corev1.PodRunning {
				nodes[pod.Spec.NodeName]++
			}
			if slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}) {
				ready++
			}
		}
	}
	seed := s.faults.Seed
	switch app {
	case "web":
		if active > webReplicas+webSurge {
			s.t.Errorf("seed %d, %s: %d pods of the deployment, want %d at most: %v", seed, time.Now().UTC().Format("04:05.000"), active, webReplicas+webSurge,
				slices.Sorted(maps.Keys(names)))
		}
		if s.served = s.served || ready == webReplicas; s.served && ready < webLeast {
			s.t.Errorf("seed %d: %d pods of the deployment are ready, its budget wants %d", seed, ready, webLeast)
		}
	case "agent", "probe":
		most := 1
		if app == "probe" { // its new pod is ready before the old one goes
			most = 2
		}
		for node, n := range nodes {
			if n > most {
				s.t.Errorf("seed %d: %d pods of daemon set %s run on %s, want %d at most", seed, n, app, node, most)
			}
		}
	case "auto":
		if active > autoMost {
			s.t.Errorf("seed %d: %d pods of what is scaled, want %d at most", seed, active, autoMost)
		}
	case "db":
		for name, count := range names {
			if count > 1 {
				s.t.Errorf("seed %d: %d pods are %s", seed, count, name)
			}
		}
	case "plain", "sum":
		if changed.Status.Phase == corev1.PodSucceeded {
			if s.succeeded[app] == nil {
				s.succeeded[app] = map[types.UID]bool{}
			}
			s.succeeded[app][changed.UID] = true
		}
		if n := len(s.succeeded[app]); n > 6 || active > 3 {
			s.t.Errorf("seed %d: job %s has %d pods that succeeded and %d that run; want 6 and 3 at most", seed, app, n, active)
		}
	case "tick":
		if active > 1 {
			s.t.Errorf("seed %d: %d runs of a cron job that forbids it", seed, active)
		}
	}
}

func over(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// tell lets people and nodes act.
func (s *story) tell() {
	s.begin()
	start := time.Now()
	for second := 0; time.Since(start) < storyTime; second++ {
		switch second {
		case 60:
			s.change(&appsv1.Deployment{}, "web", func(obj ctrlclient.Object) {
				obj.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image = "example.test/app:2"
			})
		case 100, 102, 104, 106, 260:
			s.evict("web")
		case 200:
			for _, name := range []string{"agent", "probe"} {
				s.change(&appsv1.DaemonSet{}, name, func(obj ctrlclient.Object) {
					obj.(*appsv1.DaemonSet).Spec.Template.Spec.Containers[0].Image = "example.test/app:2"
				})
			}
		case 280:
			s.evict("db")
		case 150:
			s.change(&appsv1.StatefulSet{}, "db", func(obj ctrlclient.Object) { *obj.(*appsv1.StatefulSet).Spec.Replicas = 2 })
		case 330:
			s.change(&batchv1.CronJob{}, "tick", func(obj ctrlclient.Object) { *obj.(*batchv1.CronJob).Spec.Suspend = true })
		}
		if second%10 == 0 {
			s.heartbeat()
		}
		s.act()
		<-time.After(time.Second)
	}
}

func (s *story) begin() {
	web := deployment("web", webReplicas)
	surge, unavailable := intstr.FromInt32(webSurge), intstr.FromInt32(0)
	web.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}}
	three, no, zero := int32(3), false, int32(0)
	db := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}}
	db.Spec.Replicas, db.Spec.Selector, db.Spec.Template = &three, &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}, *deployment("db", 1).Spec.Template.DeepCopy()
	indexed := batchv1.IndexedCompletion
	sum := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sum"}, Spec: jobSpec(6, 3)}
	sum.Spec.CompletionMode, sum.Spec.BackoffLimitPerIndex = &indexed, &zero
	plain := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "plain"}, Spec: jobSpec(6, 3)}
	tick := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tick"}, Spec: batchv1.CronJobSpec{
		Schedule: "* * * * *", ConcurrencyPolicy: batchv1.ForbidConcurrent, Suspend: &no, JobTemplate: batchv1.JobTemplateSpec{Spec: jobSpec(1, 1)},
	}}
	for app, template := range map[string]*corev1.PodTemplateSpec{"sum": &sum.Spec.Template, "plain": &plain.Spec.Template, "tick": &tick.Spec.JobTemplate.Spec.Template} {
		template.Labels = map[string]string{"app": app}
	}
	claim, _ := claimed("data")
	claim.Namespace = ""
	db.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{*claim}
	mustCreate(s.t, s.Cluster, web, db, sum, plain, tick, newBudget("web", intstr.FromInt32(webLeast)))
	s.beginOthers()
}

// change is retried when a controller was faster.
func (s *story) change(obj ctrlclient.Object, name string, f func(ctrlclient.Object)) {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := s.Client.Get(s.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, obj); err != nil {
			return err
		}
		next := obj.DeepCopyObject().(ctrlclient.Object)
		f(next)
		return s.Client.Update(s.t.Context(), next)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// heartbeat keeps the nodes ready.
func (s *story) heartbeat() {
	for _, name := range []string{"node-0", "node-1"} {
		now, seconds := metav1.NowMicro(), int32(40)
		key := ctrlclient.ObjectKey{Namespace: "kube-node-lease", Name: name}
		var lease coordinationv1.Lease
		if err := s.Client.Get(s.t.Context(), key, &lease); err != nil {
			lease = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: name}}
			lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &name, &seconds, &now
			if err := s.Client.Create(s.t.Context(), &lease); err != nil {
				s.t.Fatal(err)
			}
			continue
		}
		next := lease.DeepCopy()
		next.Spec.RenewTime = &now
		_ = s.Client.Update(s.t.Context(), next)
	}
}

// act lets the nodes' agents act once. A pod of a job ends when it has run for ten seconds; that with
// completion index 4 fails.
func (s *story) act() {
	ctx := s.t.Context()
	var pods corev1.PodList
	if err := s.Client.List(ctx, &pods, ctrlclient.InNamespace("default")); err != nil {
		s.t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		next := pod.DeepCopy()
		switch {
		case pod.Spec.NodeName == "" || (over(pod) && pod.DeletionTimestamp == nil):
		case pod.DeletionTimestamp != nil:
			if !over(pod) {
				end(next, 143)
				_ = s.Client.Status().Update(ctx, next)
			}
			_ = s.Client.Delete(ctx, pod, ctrlclient.GracePeriodSeconds(0))
		case pod.Status.Phase != corev1.PodRunning:
			s.started++
			next.Status.Phase, next.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.244.%d.%d", s.started/250, 1+s.started%250)
			now := metav1.Now()
			next.Status.PodIPs, next.Status.StartTime = []corev1.PodIP{{IP: next.Status.PodIP}}, &now
			next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
			_ = s.Client.Status().Update(ctx, next)
		case pod.Spec.RestartPolicy == corev1.RestartPolicyNever && time.Since(pod.CreationTimestamp.Time) > 10*time.Second:
			code := int32(0)
			if pod.Labels[batchv1.JobCompletionIndexAnnotation] == "4" {
				code = 1
			}
			end(next, code)
			_ = s.Client.Status().Update(ctx, next)
		}
	}
}

func end(pod *corev1.Pod, code int32) {
	pod.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.Now()
		}
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()},
	}}}
}

// end describes what is there, without what is random or a matter of time.
func (s *story) end() string {
	ctx, b := s.t.Context(), &strings.Builder{}
	var deployments appsv1.DeploymentList
	var sets appsv1.ReplicaSetList
	var stateful appsv1.StatefulSetList
	var jobs batchv1.JobList
	var crons batchv1.CronJobList
	var pods corev1.PodList
	err := errors.Join(s.Client.List(ctx, &deployments), s.Client.List(ctx, &sets), s.Client.List(ctx, &stateful),
		s.Client.List(ctx, &jobs), s.Client.List(ctx, &crons), s.Client.List(ctx, &pods))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range deployments.Items {
		fmt.Fprintf(b, "%s: replicas %d updated %d available %d, revision %s\n", d.Name, d.Status.Replicas, d.Status.UpdatedReplicas, d.Status.AvailableReplicas, d.Annotations["deployment.kubernetes.io/revision"])
	}
	for _, set := range sets.Items {
		fmt.Fprintf(b, "replica set of revision %s: %d of %d\n", set.Annotations["deployment.kubernetes.io/revision"], set.Status.ReadyReplicas, *set.Spec.Replicas)
	}
	for _, set := range stateful.Items {
		fmt.Fprintf(b, "%s: replicas %d ready %d\n", set.Name, set.Status.Replicas, set.Status.ReadyReplicas)
	}
	for _, j := range jobs.Items {
		if len(j.OwnerReferences) > 0 {
			continue
		}
		var last batchv1.JobCondition
		if n := len(j.Status.Conditions); n > 0 {
			last = j.Status.Conditions[n-1]
		}
		failed := ""
		if j.Status.FailedIndexes != nil {
			failed = *j.Status.FailedIndexes
		}
		fmt.Fprintf(b, "%s: %s %s, succeeded %d failed %d active %d, indexes %q and %q\n", j.Name, last.Type, last.Reason, j.Status.Succeeded, j.Status.Failed, j.Status.Active, j.Status.CompletedIndexes, failed)
	}
	for _, cj := range crons.Items {
		runs := 0
		for _, j := range jobs.Items {
			if metav1.IsControlledBy(&j, &cj) {
				runs++
			}
		}
		fmt.Fprintf(b, "%s: active %d, last %s, %d runs kept\n", cj.Name, len(cj.Status.Active), cj.Status.LastScheduleTime.UTC().Format(time.TimeOnly), runs)
	}
	counts := map[string]int{}
	for _, pod := range pods.Items {
		counts[fmt.Sprintf("%s %s, deleted %v, finalizers %v", pod.Labels["app"], pod.Status.Phase, pod.DeletionTimestamp != nil, pod.Finalizers)]++
	}
	s.endOthers(b)
	var lines []string
	for what, n := range counts {
		lines = append(lines, fmt.Sprintf("%d pods of %s\n", n, what))
	}
	slices.Sort(lines)
	budget := budgetStatus(s.t, s.Cluster, "web")
	fmt.Fprintf(b, "%sbudget: %d of %d healthy, %d allowed\n", strings.Join(lines, ""), budget.CurrentHealthy, budget.ExpectedPods, budget.DisruptionsAllowed)
	return b.String()
}
