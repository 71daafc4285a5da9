package remote

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestJudgeVersion(t *testing.T) {
	for name, tc := range map[string]struct {
		major, minor, git string
		want              string
	}{
		"new enough":       {"1", "36", "v1.36.3", ""},
		"managed":          {"1", "31+", "v1.31.4-eks-1", ""},
		"oldest":           {"1", "30", "v1.30.0", ""},
		"too old":          {"1", "29", "v1.29.9", "needs 1.30"},
		"says nothing":     {"1", "", "v1", "needs 1.30"},
		"a later major":    {"2", "0", "v2.0.0", ""},
		"Gantry's own one": {"1", "36", "v1.36.3+gantry.0.4.0", "a part of it"},
	} {
		t.Run(name, func(t *testing.T) {
			err := judgeVersion(tc.major, tc.minor, tc.git)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("judgeVersion = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestManifests(t *testing.T) {
	if _, err := Manifests(InstallOptions{}); !errors.Is(err, ErrNoImage) {
		t.Errorf("without an image: %v", err)
	}
	objects, err := Manifests(InstallOptions{Image: "gantry:1", Domain: "apps.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, object := range objects {
		names = append(names, object.GetKind()+" "+object.GetName())
		if object.GetKind() == "" || object.GetAPIVersion() == "" {
			t.Errorf("%v has no kind", object.GetName())
		}
	}
	for _, want := range []string{
		"CustomResourceDefinition apps.gantry.dev", "CustomResourceDefinition releases.gantry.dev", "Namespace gantry-system", "ClusterRole gantry:app",
		"ClusterRole gantry:addon", "ClusterRole gantry-deployer", "ClusterRoleBinding gantry:app", "Deployment gantry-platform", "ConfigMap platform",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %s among %q", want, names)
		}
	}
	if slices.Contains(names, "CustomResourceDefinition builds.gantry.dev") {
		t.Error("there are builds, which nobody would do")
	}
}

func TestPodProblem(t *testing.T) {
	pod := func(status corev1.ContainerStatus, conditions ...corev1.PodCondition) *corev1.Pod {
		return &corev1.Pod{
			Spec:   corev1.PodSpec{Containers: []corev1.Container{{Image: "gantry:1"}}},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{status}, Conditions: conditions},
		}
	}
	waiting := func(reason string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "no such host"}}}
	}
	ended := corev1.ContainerStatus{
		RestartCount: 3, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Message: "no cluster"}},
	}
	for name, tc := range map[string]struct {
		pod   *corev1.Pod
		want  string
		fatal bool
	}{
		"runs":              {pod(corev1.ContainerStatus{}), "", false},
		"first pull failed": {pod(waiting("ErrImagePull")), "ErrImagePull: no such host", false},
		"pulls failed":      {pod(waiting("ImagePullBackOff")), "ImagePullBackOff: no such host", true},
		"crashes":           {pod(ended), "their pod ended with 2: no cluster", true},
		"no node": {pod(corev1.ContainerStatus{}, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes are available",
		}), "no node takes their pod: 0/1 nodes are available", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, fatal := podProblem(tc.pod, "gantry:1"); got != tc.want || fatal != tc.fatal {
				t.Errorf("podProblem = %q, %t; want %q, %t", got, fatal, tc.want, tc.fatal)
			}
			if got, _ := podProblem(tc.pod, "gantry:2"); got != "" {
				t.Errorf("of another image: %q", got)
			}
		})
	}
}

func TestOnlyMeta(t *testing.T) {
	secret := &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: "shop-secrets", Labels: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}}},
		Data:       map[string][]byte{"KEY": []byte("value")}, Type: corev1.SecretTypeOpaque,
	}
	for range 2 { // it may be done again
		out, err := onlyMeta(secret)
		if err != nil || out.(*corev1.Secret).Data != nil || out.(*corev1.Secret).Type != "" || out.(*corev1.Secret).ManagedFields != nil {
			t.Errorf("onlyMeta = %+v, %v", out, err)
		}
	}
	if secret.Name != "shop-secrets" || secret.Labels["a"] != "b" {
		t.Errorf("the metadata is %+v", secret.ObjectMeta)
	}
}
