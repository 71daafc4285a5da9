package parity

import (
	"context"
	"errors"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	upstream "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"gantry.dev/gantry/internal/scheduler"
)

// kube is kube-scheduler without an API server: its cache is filled by hand.
type kube struct {
	t         testing.TB
	scheduler *upstream.Scheduler
	framework framework.Framework
	snapshot  *cache.Snapshot
	informers informers.SharedInformerFactory
}

func newKube(t testing.TB, profiles ...config.KubeSchedulerProfile) *kube {
	t.Helper()
	klog.SetLogger(klog.Logger{})
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	recorder := func(string) events.EventRecorderLogger { return events.NewFakeRecorder(10) }
	var options []upstream.Option
	if len(profiles) > 0 {
		options = append(options, upstream.WithProfiles(profiles...))
	}
	s, err := upstream.New(klog.NewContext(t.Context(), klog.Logger{}), fake.NewClientset(), factory, nil, recorder, options...)
	if err != nil {
		t.Fatal(err)
	}
	k := &kube{t: t, scheduler: s, framework: s.Profiles["default-scheduler"], informers: factory}
	k.snapshot = k.framework.SnapshotSharedLister().(*cache.Snapshot)
	return k
}

func (k *kube) context() context.Context { return klog.NewContext(k.t.Context(), klog.Logger{}) }

func (k *kube) add(t testing.TB, objects ...any) {
	t.Helper()
	logger := klog.Logger{}
	for _, obj := range objects {
		var err error
		switch o := obj.(type) {
		case *corev1.Node:
			k.scheduler.Cache.AddNode(logger, o)
		case *corev1.Pod:
			err = k.scheduler.Cache.AddPod(logger, o)
		case *corev1.Namespace:
			err = k.informers.Core().V1().Namespaces().Informer().GetIndexer().Add(o)
		case *corev1.Service:
			err = k.informers.Core().V1().Services().Informer().GetIndexer().Add(o)
		case *corev1.ReplicationController:
			err = k.informers.Core().V1().ReplicationControllers().Informer().GetIndexer().Add(o)
		case *appsv1.ReplicaSet:
			err = k.informers.Apps().V1().ReplicaSets().Informer().GetIndexer().Add(o)
		case *appsv1.StatefulSet:
			err = k.informers.Apps().V1().StatefulSets().Informer().GetIndexer().Add(o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (k *kube) look(t testing.TB) {
	t.Helper()
	if err := k.scheduler.Cache.UpdateSnapshot(klog.Logger{}, k.snapshot); err != nil {
		t.Fatal(err)
	}
}

// nominate keeps room for a pod that waits.
func (k *kube) nominate(t testing.TB, pod *corev1.Pod, node string) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Status.NominatedNodeName = node
	if err := k.informers.Core().V1().Pods().Informer().GetIndexer().Add(pod); err != nil {
		t.Fatal(err)
	}
	k.scheduler.SchedulingQueue.Add(k.context(), pod)
}

// place is kube-scheduler's whole decision.
func (k *kube) place(t testing.TB, pod *corev1.Pod) (node, message string) {
	t.Helper()
	k.look(t)
	info, err := framework.NewPodInfo(pod)
	if err != nil {
		t.Fatal(err)
	}
	state := framework.NewCycleState()
	result, err := k.scheduler.SchedulePod(k.context(), k.framework, state, &framework.QueuedPodInfo{PodInfo: info})
	if err == nil {
		return result.SuggestedHost, ""
	}
	if fit, ok := errors.AsType[*framework.FitError](err); ok {
		if err := k.informers.Core().V1().Pods().Informer().GetIndexer().Add(pod); err != nil {
			t.Fatal(err)
		}
		_, status := k.framework.RunPostFilterPlugins(k.context(), state, pod, fit.Diagnosis.NodeToStatus)
		fit.Diagnosis.PostFilterMsg = status.Message()
		return "", fit.Error()
	}
	return "", err.Error()
}

// verdict is what kube-scheduler thinks of one node.
type verdict struct {
	plugin     string
	reasons    []string
	resolvable bool
	total      int64
	scores     map[string]int64 // weighted
}

// judge runs kube-scheduler's plugins for every node.
func (k *kube) judge(t testing.TB, pod *corev1.Pod) map[string]*verdict {
	t.Helper()
	k.look(t)
	infos, err := k.snapshot.NodeInfos().List()
	if err != nil {
		t.Fatal(err)
	}
	state := framework.NewCycleState()
	result, status, _ := k.framework.RunPreFilterPlugins(k.context(), state, pod)
	out := map[string]*verdict{}
	var feasible []fwk.NodeInfo
	for _, info := range infos {
		name := info.Node().Name
		if status.IsSuccess() {
			if !result.AllNodes() && !result.NodeNames.Has(name) {
				out[name] = &verdict{plugin: "NodeAffinity"}
				continue
			}
			if s := k.framework.RunFilterPluginsWithNominatedPods(k.context(), state, pod, info); !s.IsSuccess() {
				out[name] = &verdict{plugin: s.Plugin(), reasons: s.Reasons(), resolvable: s.Code() == fwk.Unschedulable}
				continue
			}
			feasible = append(feasible, info)
			continue
		}
		out[name] = &verdict{plugin: status.Plugin(), reasons: status.Reasons(), resolvable: status.Code() == fwk.Unschedulable}
	}
	if len(feasible) == 0 {
		return out
	}
	if s := k.framework.RunPreScorePlugins(k.context(), state, pod, feasible); !s.IsSuccess() {
		t.Fatal(s.AsError())
	}
	scored, s := k.framework.RunScorePlugins(k.context(), state, pod, feasible)
	if !s.IsSuccess() {
		t.Fatal(s.AsError())
	}
	for _, n := range scored {
		v := &verdict{total: n.TotalScore, scores: map[string]int64{}}
		for _, p := range n.Scores {
			v.scores[p.Name] = p.Score
		}
		out[n.Name] = v
	}
	return out
}

// fill gives a State the same objects.
func fill(s *scheduler.State, objects ...any) {
	for _, obj := range objects {
		switch o := obj.(type) {
		case *corev1.Node:
			s.SetNode(o)
		case *corev1.Pod:
			s.AddPod(o, o.Spec.NodeName)
		case *corev1.Namespace:
			s.SetNamespace(o.Name, o.Labels)
		case *corev1.Service:
			s.SetService(o.Namespace, o.Name, o.Spec.Selector)
		case *corev1.ReplicationController:
			s.SetOwner("v1", "ReplicationController", o.Namespace, o.Name, matching(o.Spec.Selector))
		case *appsv1.ReplicaSet:
			s.SetOwner("apps/v1", "ReplicaSet", o.Namespace, o.Name, o.Spec.Selector)
		case *appsv1.StatefulSet:
			s.SetOwner("apps/v1", "StatefulSet", o.Namespace, o.Name, o.Spec.Selector)
		}
	}
}
