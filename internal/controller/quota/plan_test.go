package quota

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func amounts(pairs ...string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		list[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return list
}

func TestPlanStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		hard, statusHard, used, counted corev1.ResourceList
		want                            corev1.ResourceList
		changed                         bool
	}{
		"new":             {amounts("pods", "5"), nil, nil, amounts("pods", "2"), amounts("pods", "2"), true},
		"same":            {amounts("cpu", "1"), amounts("cpu", "1000m"), amounts("cpu", "0.5"), amounts("cpu", "500m"), amounts("cpu", "500m"), false},
		"freed":           {amounts("pods", "5"), amounts("pods", "5"), amounts("pods", "2"), amounts("pods", "1"), amounts("pods", "1"), true},
		"raised":          {amounts("pods", "6"), amounts("pods", "5"), amounts("pods", "2"), amounts("pods", "2"), amounts("pods", "2"), true},
		"no longer hard":  {amounts("pods", "5"), amounts("pods", "5", "secrets", "1"), amounts("pods", "2", "secrets", "1"), amounts("pods", "2"), amounts("pods", "2"), true},
		"cannot be known": {amounts("pods", "5", "x", "1"), amounts("pods", "5", "x", "1"), amounts("pods", "2", "x", "1"), amounts("pods", "2"), amounts("pods", "2", "x", "1"), false},
	} {
		t.Run(name, func(t *testing.T) {
			q := &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: tc.hard}, Status: corev1.ResourceQuotaStatus{Hard: tc.statusHard, Used: tc.used}}
			status, changed := planStatus(q, tc.counted)
			if changed != tc.changed || !sameAmounts(status.Used, tc.want) || !sameAmounts(status.Hard, tc.hard) {
				t.Errorf("planStatus = %v, %v; want used %v, %v", status, changed, tc.want, tc.changed)
			}
		})
	}
}

func TestWhatIsCountedAgain(t *testing.T) {
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: amounts("cpu", "1")}}}}}
		change(p)
		return p
	}
	same := func(*corev1.Pod) {}
	now := metav1.Now()
	for name, tc := range map[string]struct {
		old, current client.Object
		want         bool
	}{
		"created":           {nil, pod(same), false},
		"deleted":           {pod(same), nil, true},
		"running":           {pod(same), pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }), false},
		"finished":          {pod(same), pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), true},
		"on its way":        {pod(same), pod(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), true},
		"resized":           {pod(same), pod(func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = amounts("cpu", "2") }), true},
		"a secret's update": {&corev1.Secret{}, &corev1.Secret{Data: map[string][]byte{"a": nil}}, false},
		"another type":      {&corev1.Service{}, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := frees(tc.old, tc.current); got != tc.want {
				t.Errorf("frees = %v, want %v", got, tc.want)
			}
		})
	}
}
