package gantrytest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func deploymentOf(name string, replicas int32, change func(*corev1.PodSpec)) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app:1"}}},
			},
		},
	}
	change(&d.Spec.Template.Spec)
	return d
}

// placesOf counts an application's pods by node; those without one are under "".
func (c *Cluster) placesOf(app string) map[string]int {
	c.t.Helper()
	var pods corev1.PodList
	if err := c.Client.List(c.t.Context(), &pods, ctrlclient.InNamespace("default"), ctrlclient.MatchingLabels{"app": app}); err != nil {
		c.t.Fatal(err)
	}
	places := map[string]int{}
	for i := range pods.Items {
		places[pods.Items[i].Spec.NodeName]++
	}
	return places
}

func (c *Cluster) lies(app string, want map[string]int) {
	c.t.Helper()
	c.Eventually(app, func() error {
		if got := c.placesOf(app); !maps.Equal(got, want) {
			return fmt.Errorf("pods of %s are on %v, want %v", app, got, want)
		}
		return nil
	})
}

func apartFrom(labels map[string]string) *corev1.Affinity {
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
	}}}}
}

// TestPodsKeepTogetherAndApart places pods by affinity and spread through the real API: with its defaults, its
// own labels for revisions, and the scheduler's rights.
func TestPodsKeepTogetherAndApart(t *testing.T) {
	c := Start(t, Options{Nodes: 3})
	mustCreate(t, c, deploymentOf("apart", 4, func(spec *corev1.PodSpec) { spec.Affinity = apartFrom(map[string]string{"app": "apart"}) }))
	c.lies("apart", map[string]int{"node-0": 1, "node-1": 1, "node-2": 1, "": 1})
	c.Eventually("the fourth is told why", func() error {
		var pods corev1.PodList
		if err := c.Client.List(t.Context(), &pods, ctrlclient.MatchingLabels{"app": "apart"}); err != nil {
			return err
		}
		const want = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. no new claims to deallocate, " +
			"preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
		if !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return scheduledCondition(&p).Message == want }) {
			return fmt.Errorf("no pod is told %q", want)
		}
		return nil
	})

	mustCreate(t, c, deploymentOf("even", 9, func(spec *corev1.PodSpec) {
		spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			TopologyKey: corev1.LabelHostname, MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule, MatchLabelKeys: []string{"pod-template-hash"},
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "even"}},
		}}
	}))
	c.lies("even", map[string]int{"node-0": 3, "node-1": 3, "node-2": 3})

	// Namespaces are looked at from here on.
	other := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"team": "x"}}}
	friend := podOf("friend", "1", func(p *corev1.Pod) {
		p.Namespace, p.Labels = "other", map[string]string{"app": "friend"}
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node-1"}
	})
	mustCreate(t, c, other, friend)
	mustCreate(t, c, podOf("near", "1", func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "friend"}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}},
		}}}}
	}))
	c.podIs("near", func(p *corev1.Pod) bool { return p.Spec.NodeName == "node-1" })

	c.AddNode("node-3") // it helps the fourth
	c.lies("apart", map[string]int{"node-0": 1, "node-1": 1, "node-2": 1, "node-3": 1})
}
