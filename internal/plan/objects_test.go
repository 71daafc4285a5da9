package plan_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/gantrytest"
)

func decode(t *testing.T, document string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(strings.TrimSuffix(strings.TrimSpace(document), "---")), into); err != nil {
		t.Fatal(err)
	}
}

func priorityClass(name string, value int32) *schedulingv1.PriorityClass {
	return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
}

func request(pod *corev1.Pod, name corev1.ResourceName, amount string) {
	list := corev1.ResourceList{name: resource.MustParse(amount)}
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list, Limits: list}
}

// change writes to a node, again when a controller was faster.
func change(t *testing.T, c *gantrytest.Cluster, name string, f func(*corev1.Node)) {
	t.Helper()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var node corev1.Node
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: name}, &node); err != nil {
			return err
		}
		next := node.DeepCopy()
		f(next)
		return c.Client.Update(t.Context(), next)
	})
	if err != nil {
		t.Fatal(err)
	}
}
