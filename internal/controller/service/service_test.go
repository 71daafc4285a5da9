package service

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

type silent struct{}

func (silent) Event(runtime.Object, string, string, string) {}

func newService(change ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "svc", Labels: map[string]string{"team": "shop"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.10", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")}},
		},
	}
	for _, f := range change {
		f(svc)
	}
	return svc
}

func newPod(n int, isReady bool, change ...func(*corev1.Pod)) *corev1.Pod {
	status := corev1.ConditionFalse
	if isReady {
		status = corev1.ConditionTrue
	}
	ip := fmt.Sprintf("10.0.%d.%d", n/250, n%250+1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%04d", n), UID: types.UID(fmt.Sprintf("p%d", n)), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}},
		},
	}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func inZone(string) (string, bool) { return "a", true }

func TestEndpointsOf(t *testing.T) {
	yes, no := true, false
	now := metav1.Now()
	conditions := func(ready, serving, terminating *bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
	}
	for name, tc := range map[string]struct {
		svc  *corev1.Service
		pod  *corev1.Pod
		want *discoveryv1.EndpointConditions
	}{
		"ready":            {newService(), newPod(1, true), ptr(conditions(&yes, &yes, &no))},
		"not ready":        {newService(), newPod(1, false), ptr(conditions(&no, &no, &no))},
		"terminating":      {newService(), newPod(1, true, func(p *corev1.Pod) { p.DeletionTimestamp = &now }), ptr(conditions(&no, &yes, &yes))},
		"published anyhow": {newService(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }), newPod(1, false), ptr(conditions(&yes, &no, &no))},
		"failed":           {newService(), newPod(1, true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), nil},
		"no address":       {newService(), newPod(1, true, func(p *corev1.Pod) { p.Status.PodIPs = nil; p.Status.PodIP = "" }), nil},
		"other family":     {newService(func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }), newPod(1, true), nil},
	} {
		t.Run(name, func(t *testing.T) {
			groups, _ := endpointsOf(tc.svc, []*corev1.Pod{tc.pod}, inZone)
			if tc.want == nil {
				if len(groups) != 0 {
					t.Errorf("published as %+v", groups)
				}
				return
			}
			if len(groups) != 1 || len(groups[0].endpoints) != 1 {
				t.Fatalf("groups %+v", groups)
			}
			e := groups[0].endpoints[0]
			if diff := cmp.Diff(*tc.want, e.Conditions); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
			if *e.NodeName != "n1" || *e.Zone != "a" || e.TargetRef.Name != tc.pod.Name || *groups[0].ports[0].Port != 8080 || *groups[0].ports[0].Name != "http" {
				t.Errorf("endpoint %+v, ports %+v", e, groups[0].ports)
			}
		})
	}
}

func TestHostnameAndHints(t *testing.T) {
	near := corev1.ServiceTrafficDistributionPreferSameNode
	svc := newService(func(s *corev1.Service) { s.Spec.TrafficDistribution = &near })
	pod := newPod(1, true, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "db-0", "web" })
	groups, _ := endpointsOf(svc, []*corev1.Pod{pod}, inZone)
	e := groups[0].endpoints[0]
	if e.Hostname == nil || *e.Hostname != "db-0" {
		t.Errorf("hostname %v", e.Hostname)
	}
	want := &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}
	if diff := cmp.Diff(want, e.Hints); diff != "" {
		t.Errorf("hints (-want +got):\n%s", diff)
	}
}

// shape prints a plan as the sizes of what it creates, updates and removes.
func shape(p slicePlan) string {
	sizes := func(list []*discoveryv1.EndpointSlice) []int {
		out := []int{}
		for _, s := range list {
			out = append(out, len(s.Endpoints))
		}
		slices.Sort(out)
		return out
	}
	return fmt.Sprintf("create %v update %v remove %v", sizes(p.create), sizes(p.update), sizes(p.remove))
}

func TestPlanSlices(t *testing.T) {
	svc := newService()
	owner := sliceOwner{
		namespace: "default", name: "web", labels: sliceLabels(svc), limit: maxPerSlice, placeholders: families(svc),
		reference: *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service")),
	}
	pods := func(from, to int) (out []*corev1.Pod) {
		for i := from; i < to; i++ {
			out = append(out, newPod(i, true))
		}
		return out
	}
	slicesFor := func(sizes ...int) (out []*discoveryv1.EndpointSlice) {
		from := 0
		for i, size := range sizes {
			s := newSlice(owner, discoveryv1.AddressTypeIPv4, []discoveryv1.EndpointPort{})
			s.Name, s.UID = fmt.Sprintf("web-%d", i), types.UID(fmt.Sprint("s", i))
			if groups, _ := endpointsOf(svc, pods(from, from+size), inZone); len(groups) > 0 {
				s.Ports, s.Endpoints = groups[0].ports, groups[0].endpoints
			}
			from += size
			out = append(out, s)
		}
		return out
	}
	for name, tc := range map[string]struct {
		existing []*discoveryv1.EndpointSlice
		pods     []*corev1.Pod
		want     string
	}{
		"none at first":          {nil, nil, "create [0] update [] remove []"},
		"placeholder stays":      {slicesFor(0), nil, "create [] update [] remove []"},
		"placeholder becomes it": {slicesFor(0), pods(0, 3), "create [] update [3] remove []"},
		"all new":                {nil, pods(0, 250), "create [50 100 100] update [] remove []"},
		"nothing to do":          {slicesFor(100, 50), pods(0, 150), "create [] update [] remove []"},
		"one more fits":          {slicesFor(100, 50), pods(0, 151), "create [] update [51] remove []"},
		"goes to the fullest":    {slicesFor(10, 60), pods(0, 80), "create [] update [70] remove []"},
		"changed one is filled":  {slicesFor(100, 50), append(pods(1, 150), pods(150, 160)...), "create [] update [59 100] remove []"},
		"to none":                {slicesFor(3), nil, "create [] update [0] remove []"},
		"one slice empties":      {slicesFor(100, 50), pods(100, 150), "create [] update [] remove [100]"},
	} {
		t.Run(name, func(t *testing.T) {
			groups, _ := endpointsOf(svc, tc.pods, inZone)
			plan := planSlices(owner, tc.existing, groups)
			if got := shape(plan); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestPackSubsets(t *testing.T) {
	svc := newService(func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(9090)})
	})
	got := subsetsOf(svc, []*corev1.Pod{newPod(2, true), newPod(1, false), newPod(3, true)})
	if len(got) != 1 || len(got[0].Ports) != 2 || len(got[0].Addresses) != 2 || len(got[0].NotReadyAddresses) != 1 {
		t.Fatalf("subsets %+v", got)
	}
	if got[0].Addresses[0].IP != "10.0.0.3" || got[0].Addresses[1].IP != "10.0.0.4" {
		t.Errorf("addresses not in order: %+v", got[0].Addresses)
	}
}

func TestEndpointsAreTruncated(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 1200 {
		pods = append(pods, newPod(i, i >= 300))
	}
	svc := newService()
	got := planEndpoints(svc, nil, subsetsOf(svc, pods), "")
	if got.Annotations[corev1.EndpointsOverCapacity] != "truncated" || len(got.Subsets[0].Addresses) != 900 || len(got.Subsets[0].NotReadyAddresses) != 100 {
		t.Errorf("%v, %d ready, %d not", got.Annotations, len(got.Subsets[0].Addresses), len(got.Subsets[0].NotReadyAddresses))
	}
	if planEndpoints(svc, got, subsetsOf(svc, pods), "") != nil {
		t.Error("planned again though nothing changed")
	}
}

func inWorld(t *testing.T, objs []client.Object, f func(c *controllertest.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := controllertest.New(t, objs...)
		sc, err := New(c, c, silent{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- sc.Run(ctx) }()
		settle()
		f(c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func slicesIn(t *testing.T, c client.Client) []discoveryv1.EndpointSlice {
	t.Helper()
	var list discoveryv1.EndpointSliceList
	if err := c.List(context.Background(), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestController(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	inWorld(t, []client.Object{node, newService(), newPod(1, true), newPod(2, false)}, func(c *controllertest.Cluster) {
		all := slicesIn(t, c)
		if len(all) != 1 || len(all[0].Endpoints) != 2 {
			t.Fatalf("slices %+v", all)
		}
		want := map[string]string{"team": "shop", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
		if diff := cmp.Diff(want, all[0].Labels); diff != "" {
			t.Errorf("labels (-want +got):\n%s", diff)
		}
		if all[0].GenerateName != "web-" || all[0].OwnerReferences[0].Kind != "Service" || all[0].Annotations[corev1.EndpointsLastChangeTriggerTime] == "" {
			t.Errorf("metadata %+v", all[0].ObjectMeta)
		}
		key := types.NamespacedName{Namespace: "default", Name: "web"}
		var endpoints corev1.Endpoints
		if err := c.Get(context.Background(), key, &endpoints); err != nil {
			t.Fatal(err)
		}
		if endpoints.Labels["endpoints.kubernetes.io/managed-by"] != "endpoint-controller" || len(endpoints.Subsets) != 1 {
			t.Errorf("endpoints %+v", endpoints)
		}
		writes := c.Writes()
		settle()
		if n := c.Writes() - writes; n != 0 {
			t.Errorf("%d writes with nothing to do", n)
		}
		if err := c.Status().Update(context.Background(), newPod(2, true)); err != nil {
			t.Fatal(err)
		}
		settle()
		for _, e := range slicesIn(t, c)[0].Endpoints {
			if !*e.Conditions.Ready {
				t.Errorf("%s not ready", e.TargetRef.Name)
			}
		}
		if err := c.Delete(context.Background(), newService()); err != nil {
			t.Fatal(err)
		}
		settle()
		if err := c.Get(context.Background(), key, &endpoints); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("endpoints of a deleted service: %v", err)
		}
	})
}

func TestMirror(t *testing.T) {
	manual := newService(func(s *corev1.Service) { s.Spec.Selector = nil })
	endpoints := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "ep", Labels: map[string]string{"by": "hand"}, Annotations: map[string]string{"why": "a test", corev1.LastAppliedConfigAnnotation: "x"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}, {IP: "192.0.2.2"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: "TCP"}},
		}},
	}
	inWorld(t, []client.Object{manual, endpoints}, func(c *controllertest.Cluster) {
		all := slicesIn(t, c)
		if len(all) != 1 || len(all[0].Endpoints) != 2 || all[0].Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" ||
			all[0].Labels["by"] != "hand" || all[0].OwnerReferences[0].Kind != "Endpoints" {
			t.Fatalf("slices %+v", all)
		}
		if diff := cmp.Diff(map[string]string{"why": "a test"}, all[0].Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}
		annotated := endpoints.DeepCopy()
		annotated.Annotations["why"] = "another"
		if err := c.Update(context.Background(), annotated); err != nil {
			t.Fatal(err)
		}
		settle()
		if all := slicesIn(t, c); len(all) != 1 || all[0].Annotations["why"] != "another" {
			t.Errorf("after another annotation: %+v", all)
		}
		changed := annotated.DeepCopy()
		changed.Subsets[0].Addresses = changed.Subsets[0].Addresses[:1]
		if err := c.Update(context.Background(), changed); err != nil {
			t.Fatal(err)
		}
		settle()
		if all := slicesIn(t, c); len(all) != 1 || len(all[0].Endpoints) != 1 {
			t.Errorf("after an update: %+v", all)
		}
		if err := c.Delete(context.Background(), changed); err != nil {
			t.Fatal(err)
		}
		settle()
		if all := slicesIn(t, c); len(all) != 0 {
			t.Errorf("after the deletion: %+v", all)
		}
	})
}

func ptr[T any](v T) *T { return &v }

// FuzzPlanSlices plays random sets of pods: after each plan the slices hold exactly the
// endpoints wanted, none twice and none beyond the limit, and a second plan is empty.
func FuzzPlanSlices(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	svc := newService()
	owner := sliceOwner{
		namespace: "default", name: "web", labels: sliceLabels(svc), limit: 7, placeholders: families(svc),
		reference: *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service")),
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 2))
		stored := map[string]*discoveryv1.EndpointSlice{}
		for step := range 30 {
			var pods []*corev1.Pod
			for i := range 60 {
				if random.IntN(3) == 0 {
					pods = append(pods, newPod(i, random.IntN(4) > 0, func(p *corev1.Pod) {
						if i%5 == 0 {
							p.Spec.Containers[0].Ports[0].ContainerPort = 9090 // the same name, another number
						}
					}))
				}
			}
			groups, _ := endpointsOf(svc, pods, inZone)
			plan := planSlices(owner, slices.Collect(maps.Values(stored)), groups)
			for i, s := range plan.create {
				s.Name = fmt.Sprintf("s%d-%d", step, i)
			}
			for _, s := range append(plan.create, plan.update...) {
				stored[s.Name] = s
			}
			for _, s := range plan.remove {
				delete(stored, s.Name)
			}
			count := 0
			seen := map[string]bool{}
			for _, s := range stored {
				if len(s.Endpoints) > owner.limit {
					t.Fatalf("step %d: %d endpoints in a slice", step, len(s.Endpoints))
				}
				for i := range s.Endpoints {
					count++
					seen[endpointKey(&s.Endpoints[i])] = true
				}
			}
			if count != len(pods) || len(seen) != len(pods) || len(stored) == 0 {
				t.Fatalf("step %d: %d endpoints, %d distinct in %d slices for %d pods", step, count, len(seen), len(stored), len(pods))
			}
			if again := planSlices(owner, slices.Collect(maps.Values(stored)), groups); shape(again) != "create [] update [] remove []" {
				t.Fatalf("step %d: planned again: %s", step, shape(again))
			}
		}
	})
}
