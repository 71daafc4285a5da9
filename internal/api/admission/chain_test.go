package admission

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	api "k8s.io/kubernetes/pkg/apis/core"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// fakeReader holds objects by "namespace/name".
type fakeReader map[string]ctrlclient.Object

// Get implements Reader.
func (f fakeReader) Get(_ context.Context, key ctrlclient.ObjectKey, obj ctrlclient.Object, _ ...ctrlclient.GetOption) error {
	there := f[key.String()]
	switch out := obj.(type) {
	case *corev1.Namespace:
		if ns, ok := there.(*corev1.Namespace); ok {
			*out = *ns
			return nil
		}
	case *corev1.ServiceAccount:
		if account, ok := there.(*corev1.ServiceAccount); ok {
			*out = *account
			return nil
		}
	case *corev1.Pod:
		if pod, ok := there.(*corev1.Pod); ok {
			*out = *pod
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{Resource: "things"}, key.Name)
}

func cluster() fakeReader {
	return fakeReader{
		"/default": &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		"/going":   &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "going"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}},
		"default/default": &corev1.ServiceAccount{
			ObjectMeta:       metav1.ObjectMeta{Namespace: "default", Name: "default"},
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
		},
		"default/mine":   &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mine"}, Spec: corev1.PodSpec{NodeName: "n1"}},
		"default/theirs": &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "theirs"}, Spec: corev1.PodSpec{NodeName: "n2"}},
	}
}

func pod(change func(*api.Pod)) *api.Pod {
	p := &api.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       api.PodSpec{Containers: []api.Container{{Name: "c"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

type request struct {
	resource, sub, namespace, name string
	op                             admission.Operation
	obj, old                       runtime.Object
	user                           user.Info
}

func (r request) attributes() admission.Attributes {
	return admission.NewAttributesRecord(r.obj, r.old, schema.GroupVersionKind{Version: "v1"}, r.namespace, r.name,
		schema.GroupVersionResource{Version: "v1", Resource: r.resource}, r.sub, r.op, nil, false, r.user)
}

func admit(t *testing.T, r request) error {
	t.Helper()
	chain, err := NewChain(cluster())
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.Admit(t.Context(), r.attributes()); err != nil {
		return err
	}
	return chain.Validate(t.Context(), r.attributes())
}

func TestNewPodsGetWhatUpstreamGives(t *testing.T) {
	p := pod(nil)
	if err := admit(t, request{resource: "pods", namespace: "default", name: "p", op: admission.Create, obj: p}); err != nil {
		t.Fatal(err)
	}
	if p.Spec.ServiceAccountName != "default" || len(p.Spec.ImagePullSecrets) != 1 || p.Spec.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("account %q with pull secrets %v; want default with pull", p.Spec.ServiceAccountName, p.Spec.ImagePullSecrets)
	}
	mounts := p.Spec.Containers[0].VolumeMounts
	if len(p.Spec.Volumes) != 1 || p.Spec.Volumes[0].Projected == nil || len(mounts) != 1 || mounts[0].Name != p.Spec.Volumes[0].Name {
		t.Errorf("volumes %v and mounts %v; want one token volume, mounted", p.Spec.Volumes, mounts)
	}
	if len(p.Spec.Tolerations) != 2 || *p.Spec.Tolerations[0].TolerationSeconds != 300 {
		t.Errorf("tolerations %v; want not-ready and unreachable for 300 s", p.Spec.Tolerations)
	}
	if p.Spec.Priority == nil || *p.Spec.Priority != 0 || *p.Spec.PreemptionPolicy != api.PreemptLowerPriority {
		t.Errorf("priority %v, policy %v; want 0 and PreemptLowerPriority", p.Spec.Priority, p.Spec.PreemptionPolicy)
	}
	again := pod(func(p *api.Pod) { p.Spec.PriorityClassName = "system-node-critical" })
	if err := admit(t, request{resource: "pods", namespace: "default", name: "p", op: admission.Create, obj: again}); err != nil || *again.Spec.Priority != 2000001000 {
		t.Errorf("system-node-critical gives %v, %v", again.Spec.Priority, err)
	}
}

func TestRefusals(t *testing.T) {
	agent := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
	no := false
	for name, tc := range map[string]struct {
		request request
		want    string // part of the error, "" for none
	}{
		"create in a namespace that is not there": {request{resource: "configmaps", namespace: "none", op: admission.Create, obj: &api.ConfigMap{}}, "not found"},
		"create in a namespace that goes":         {request{resource: "configmaps", namespace: "going", op: admission.Create, obj: &api.ConfigMap{}}, "because it is being terminated"},
		"update in a namespace that goes":         {request{resource: "configmaps", namespace: "going", op: admission.Update, obj: &api.ConfigMap{}}, ""},
		"delete kube-system":                      {request{resource: "namespaces", name: "kube-system", op: admission.Delete}, "this namespace may not be deleted"},
		"delete another namespace":                {request{resource: "namespaces", name: "going", op: admission.Delete}, ""},
		"account that is not there": {request{resource: "pods", namespace: "default", op: admission.Create,
			obj: pod(func(p *api.Pod) { p.Spec.ServiceAccountName = "none" })}, "error looking up service account default/none"},
		"priority class that is not there": {request{resource: "pods", namespace: "default", op: admission.Create,
			obj: pod(func(p *api.Pod) { p.Spec.PriorityClassName = "none"; p.Spec.AutomountServiceAccountToken = &no })}, "no PriorityClass with name none was found"},
		"agent on its own pod":    {request{resource: "pods", sub: "status", namespace: "default", name: "mine", op: admission.Update, obj: pod(nil), old: pod(nil), user: agent}, ""},
		"agent on another's pod":  {request{resource: "pods", sub: "status", namespace: "default", name: "theirs", op: admission.Update, obj: pod(nil), old: pod(nil), user: agent}, "spec.nodeName set to itself"},
		"agent makes a pod":       {request{resource: "pods", namespace: "default", op: admission.Create, obj: pod(nil), user: agent}, "can only create mirror pods"},
		"agent on another node":   {request{resource: "nodes", name: "n2", op: admission.Update, obj: &api.Node{}, old: &api.Node{}, user: agent}, `is not allowed to modify node "n2"`},
		"agent takes off a taint": {request{resource: "nodes", name: "n1", op: admission.Update, obj: &api.Node{}, old: &api.Node{Spec: api.NodeSpec{Taints: []api.Taint{{Key: "k"}}}}, user: agent}, "not allowed to modify taints"},
	} {
		t.Run(name, func(t *testing.T) {
			err := admit(t, tc.request)
			if tc.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one that says %q", err, tc.want)
			}
		})
	}
}

func TestTheDefaultAccountIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := cluster()
		delete(reader, "default/default")
		err := serviceAccount{reader}.Admit(t.Context(), request{resource: "pods", namespace: "default", op: admission.Create, obj: pod(nil)}.attributes())
		if err == nil || !apierrors.IsForbidden(err) {
			t.Errorf("error %v after waiting in vain, want forbidden", err)
		}
	})
}

func TestNewNodesAreTainted(t *testing.T) {
	node := &api.Node{}
	if err := admit(t, request{resource: "nodes", op: admission.Create, obj: node}); err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
		t.Errorf("taints %v, want not-ready", node.Spec.Taints)
	}
}
