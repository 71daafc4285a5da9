package admission_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/gantrytest"
)

// world is a cluster and clients that speak HTTP to it.
type world struct {
	*gantrytest.Cluster
	kubernetes.Interface // as an administrator
	count                atomic.Int32
}

func start(t *testing.T, opts gantrytest.Options) *world {
	t.Helper()
	c := gantrytest.Start(t, opts)
	return &world{Cluster: c, Interface: as(t, c, nil, "root", "system:masters")}
}

// as makes a client of a user. heard collects the warnings that it gets; nil drops them.
func as(t *testing.T, c *gantrytest.Cluster, heard *warnings, user string, groups ...string) kubernetes.Interface {
	t.Helper()
	config := c.Config(user, groups...)
	config.WarningHandler = rest.NoWarnings{}
	if heard != nil {
		config.WarningHandler = heard
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// warnings implements rest.WarningHandler.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

// take returns what was heard since it was last called.
func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.texts, "\n")
	w.texts = nil
	return text
}

// namespace makes a new one.
func (w *world) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	name := fmt.Sprintf("n%d", w.count.Add(1))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := w.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the config map that every namespace has", func() error { // webhooks would be asked about it in the middle of a test
		_, err := w.CoreV1().ConfigMaps(name).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	return name
}

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.test/app:1"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

// wantError checks that err says text; "" is no error.
func wantError(t *testing.T, what string, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("%s: error %v, want one that says %q", what, err, text)
	}
}

func TestNewPodsGetWhatUpstreamGives(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	made, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Spec.ServiceAccountName != "default" || len(made.Spec.Volumes) != 1 || made.Spec.Volumes[0].Projected == nil {
		t.Errorf("account %q, volumes %v; want default and one token volume", made.Spec.ServiceAccountName, made.Spec.Volumes)
	}
	if mounts := made.Spec.Containers[0].VolumeMounts; len(mounts) != 1 || mounts[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
		t.Errorf("mounts %v; want the token", mounts)
	}
	if len(made.Spec.Tolerations) != 2 || *made.Spec.Tolerations[0].TolerationSeconds != 1 {
		t.Errorf("tolerations %v; want not-ready and unreachable for a second", made.Spec.Tolerations)
	}
	if made.Spec.Priority == nil || *made.Spec.Priority != 0 || *made.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("priority %v, policy %v; want 0 and PreemptLowerPriority", made.Spec.Priority, made.Spec.PreemptionPolicy)
	}
}

func TestPriorityClasses(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	create := func(name, class string) (*corev1.Pod, error) {
		return w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) { p.Name, p.Spec.PriorityClassName = name, class }), metav1.CreateOptions{})
	}
	if p, err := create("system", "system-node-critical"); err != nil || *p.Spec.Priority != 2000001000 {
		t.Errorf("system-node-critical gives %v", err)
	}
	_, err := create("none", "none")
	wantError(t, "class that is not there", err, "no PriorityClass with name none was found")
	never := corev1.PreemptNever
	classes := w.SchedulingV1().PriorityClasses()
	for name, def := range map[string]bool{"low": true, "high": false} {
		class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: int32(len(name)), GlobalDefault: def, PreemptionPolicy: &never}
		if _, err := classes.Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := create("default", ""); err != nil || *p.Spec.Priority != 3 || p.Spec.PriorityClassName != "low" || *p.Spec.PreemptionPolicy != never {
		t.Errorf("the default class gives %+v, %v", p.Spec, err)
	}
	_, err = classes.Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Value: 1, GlobalDefault: true}, metav1.CreateOptions{})
	wantError(t, "second default", err, "PriorityClass low is already marked as default. Only one default can exist")
}

func TestNamespacesAndAccounts(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	_, err := w.CoreV1().ConfigMaps("none").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	wantError(t, "namespace that is not there", err, `namespaces "none" not found`)
	held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "held", Finalizers: []string{"example.test/hold"}}}
	if held, err = w.CoreV1().ConfigMaps(ns).Create(t.Context(), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = w.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	wantError(t, "create in a namespace that goes", err, "because it is being terminated")
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("%v has no cause NamespaceTerminating", err)
	}
	patch := []byte(`{"metadata":{"finalizers":null}}`)
	_, err = w.CoreV1().ConfigMaps(ns).Patch(t.Context(), held.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	wantError(t, "update in a namespace that goes", err, "")
	wantError(t, "delete kube-system", w.CoreV1().Namespaces().Delete(t.Context(), "kube-system", metav1.DeleteOptions{}), "this namespace may not be deleted")

	ns = w.namespace(t, nil)
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "none" }), metav1.CreateOptions{})
	wantError(t, "account that is not there", err, "error looking up service account "+ns+"/none: serviceaccount \"none\" not found")
	account := &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "strict", Annotations: map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"}},
		Secrets:    []corev1.ObjectReference{{Name: "ok"}}, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
	}
	if _, err := w.CoreV1().ServiceAccounts(ns).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mounts := func(secret string) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.ServiceAccountName, p.Name = "strict", secret
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}}}
		})
	}
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), mounts("ok"), metav1.CreateOptions{})
	wantError(t, "secret of the account", err, "")
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), mounts("other"), metav1.CreateOptions{})
	wantError(t, "another secret", err, "is not allowed because service account strict does not reference that secret")
}

func TestNodeRestriction(t *testing.T) {
	w := start(t, gantrytest.Options{Nodes: 2})
	ns := w.namespace(t, nil)
	for node, name := range map[string]string{"node-0": "mine", "node-1": "theirs"} {
		p := pod(func(p *corev1.Pod) { p.Name, p.Spec.NodeName = name, node })
		if _, err := w.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	agent := as(t, w.Cluster, nil, "system:node:node-0", "system:nodes")
	// The Node authorizer is not what is tested here.
	grant := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "agents"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "system:nodes"}},
	}
	if _, err := w.RbacV1().ClusterRoleBindings().Create(t.Context(), grant, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	status := []byte(`{"status":{"reason":"test"}}`)
	w.Eventually("the binding's effect", func() error {
		_, err := agent.CoreV1().Pods(ns).Patch(ctx, "mine", types.MergePatchType, status, metav1.PatchOptions{}, "status")
		return err
	})
	_, err := agent.CoreV1().Pods(ns).Patch(ctx, "theirs", types.MergePatchType, status, metav1.PatchOptions{}, "status")
	wantError(t, "another's pod", err, `node "node-0" can only update pod status for pods with spec.nodeName set to itself`)
	_, err = agent.CoreV1().Pods(ns).Create(ctx, pod(func(p *corev1.Pod) { p.Name = "new" }), metav1.CreateOptions{})
	wantError(t, "a pod", err, `node "node-0" can only create mirror pods`)
	label := []byte(`{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`)
	_, err = agent.CoreV1().Nodes().Patch(ctx, "node-0", types.MergePatchType, label, metav1.PatchOptions{})
	wantError(t, "a restricted label", err, "is not allowed to modify labels: node-restriction.kubernetes.io/x")
	_, err = agent.CoreV1().Nodes().Patch(ctx, "node-1", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	wantError(t, "another node", err, `node "node-0" is not allowed to modify node "node-1"`)
	made, err := w.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{})
	if err != nil || len(made.Spec.Taints) != 1 || made.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
		t.Errorf("a new node has the taints %v, %v; want not-ready", made.Spec.Taints, err)
	}
}

func TestOwnerReferences(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	ctx := t.Context()
	owner, err := w.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "create", "update", "patch"}},
	}}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "writer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "ann"}}}
	if _, err := w.RbacV1().Roles(ns).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RbacV1().RoleBindings(ns).Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ann := as(t, w.Cluster, nil, "ann").CoreV1().ConfigMaps(ns)
	owned := func(name string, block bool) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID, BlockOwnerDeletion: &block},
		}}}
	}
	w.Eventually("the binding's effect", func() error {
		_, err := ann.Create(ctx, owned("free", false), metav1.CreateOptions{})
		return err
	})
	_, err = ann.Create(ctx, owned("blocking", true), metav1.CreateOptions{})
	wantError(t, "a reference that blocks", err, "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on")
	free := owned("free", false)
	free.OwnerReferences[0].Controller = new(bool)
	*free.OwnerReferences[0].Controller = true
	_, err = ann.Update(ctx, free, metav1.UpdateOptions{})
	wantError(t, "a change of owner", err, "cannot set an ownerRef on a resource you can't delete")
	free.OwnerReferences = owned("free", false).OwnerReferences
	free.Data = map[string]string{"a": "b"}
	_, err = ann.Update(ctx, free, metav1.UpdateOptions{})
	wantError(t, "another change", err, "")
}

func TestStorageAndIngressDefaults(t *testing.T) {
	// Nobody binds the claims, or takes back that they are bound.
	w := start(t, gantrytest.Options{WithoutControllers: []string{"persistent-volume-binder", "expand-controller"}})
	ns := w.namespace(t, nil)
	ctx := t.Context()
	yes := true
	if err := w.StorageV1().StorageClasses().Delete(ctx, "local", metav1.DeleteOptions{}); err != nil { // the cluster's own default
		t.Fatal(err)
	}
	for name, annotations := range map[string]map[string]string{"fixed": nil, "std": {"storageclass.kubernetes.io/is-default-class": "true"}} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Provisioner: "example.test/x"}
		if name == "std" {
			class.AllowVolumeExpansion = &yes
		}
		if _, err := w.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	claim := func(name string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}
	}
	made, err := w.CoreV1().PersistentVolumeClaims(ns).Create(ctx, claim("a"), metav1.CreateOptions{})
	if err != nil || made.Spec.StorageClassName == nil || *made.Spec.StorageClassName != "std" {
		t.Fatalf("class %v, %v; want std", made.Spec.StorageClassName, err)
	}
	if len(made.Finalizers) != 1 || made.Finalizers[0] != "kubernetes.io/pvc-protection" {
		t.Errorf("finalizers %v; want pvc-protection", made.Finalizers)
	}
	fixed := claim("b")
	fixed.Spec.StorageClassName = new(string)
	*fixed.Spec.StorageClassName = "fixed"
	if fixed, err = w.CoreV1().PersistentVolumeClaims(ns).Create(ctx, fixed, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*corev1.PersistentVolumeClaim{made, fixed} {
		bound := []byte(`{"status":{"phase":"Bound"}}`)
		if _, err := w.CoreV1().PersistentVolumeClaims(ns).Patch(ctx, c.Name, types.MergePatchType, bound, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		_, err = w.CoreV1().PersistentVolumeClaims(ns).Patch(ctx, c.Name, types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{})
		wantError(t, "growing "+c.Name, err, map[string]string{"a": "", "b": "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"}[c.Name])
	}
	ingressClass := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{"ingressclass.kubernetes.io/is-default-class": "true"}},
		Spec: networkingv1.IngressClassSpec{Controller: "example.test/web"}}
	if _, err := w.NetworkingV1().IngressClasses().Create(ctx, ingressClass, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ingress := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "i"}, Spec: networkingv1.IngressSpec{
		DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Number: 80}}},
	}}
	if got, err := w.NetworkingV1().Ingresses(ns).Create(ctx, ingress, metav1.CreateOptions{}); err != nil || got.Spec.IngressClassName == nil || *got.Spec.IngressClassName != "web" {
		t.Errorf("class %v, %v; want web", got.Spec.IngressClassName, err)
	}
}

func TestRuntimeClass(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	class := &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: "vm"}, Handler: "vm",
		Overhead: &nodev1.Overhead{PodFixed: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"},
			Tolerations: []corev1.Toleration{{Key: "vm", Operator: corev1.TolerationOpExists}}},
	}
	if _, err := w.NodeV1().RuntimeClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	of := func(name string) *corev1.Pod { return pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = &name }) }
	made, err := w.CoreV1().Pods(ns).Create(t.Context(), of("vm"), metav1.CreateOptions{})
	if err != nil || made.Spec.Overhead.Memory().String() != "64Mi" || made.Spec.NodeSelector["vm"] != "yes" || len(made.Spec.Tolerations) != 3 {
		t.Errorf("pod %+v, %v; want the class's overhead, selector and toleration", made.Spec, err)
	}
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), of("none"), metav1.CreateOptions{})
	wantError(t, "class that is not there", err, `pod rejected: RuntimeClass "none" not found`)
}

func TestPodSecurity(t *testing.T) {
	w := start(t, gantrytest.Options{})
	var heard warnings
	c := as(t, w.Cluster, &heard, "root", "system:masters")
	ns := w.namespace(t, map[string]string{"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"})
	privileged := func(p *corev1.Pod) {
		yes := true
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	}
	_, err := c.CoreV1().Pods(ns).Create(t.Context(), pod(privileged), metav1.CreateOptions{})
	wantError(t, "a privileged pod", err, `violates PodSecurity "baseline:latest": privileged (container "c" must not set securityContext.privileged=true)`)
	if !apierrors.IsForbidden(err) {
		t.Errorf("%v is not forbidden", err)
	}
	heard.take()
	_, err = c.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{})
	wantError(t, "an ordinary pod", err, "")
	if text := heard.take(); !strings.Contains(text, `would violate PodSecurity "restricted:latest"`) {
		t.Errorf("warnings %q; want that restricted is violated", text)
	}
	label := []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`)
	if _, err := c.CoreV1().Namespaces().Patch(t.Context(), ns, types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if text := heard.take(); !strings.Contains(text, `existing pods in namespace "`+ns+`" violate the new PodSecurity enforce level "restricted:latest"`) {
		t.Errorf("warnings %q; want that existing pods violate the new level", text)
	}
	_, err = c.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) { p.Name = "q" }), metav1.CreateOptions{})
	wantError(t, "an ordinary pod under restricted", err, `violates PodSecurity "restricted:latest"`)
}

func TestCertificateSubjectAndTopology(t *testing.T) {
	w := start(t, gantrytest.Options{Nodes: 1})
	ns := w.namespace(t, nil)
	_, err := w.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "masters"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: signingRequest(t, "system:masters"), SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	wantError(t, "a request for system:masters", err, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
	zone := []byte(`{"metadata":{"labels":{"topology.kubernetes.io/zone":"z1"}}}`)
	if _, err := w.CoreV1().Nodes().Patch(t.Context(), "node-0", types.MergePatchType, zone, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("a bound pod with its zone", func() error { return hasLabel(t.Context(), w, ns, "topology.kubernetes.io/zone", "z1") })
}

func hasLabel(ctx context.Context, w *world, ns, key, want string) error {
	p, err := w.CoreV1().Pods(ns).Get(ctx, "p", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if p.Spec.NodeName == "" || p.Labels[key] != want {
		return fmt.Errorf("node %q, label %q", p.Spec.NodeName, p.Labels[key])
	}
	return nil
}
