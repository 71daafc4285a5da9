package registry

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/store"
)

// start runs a registry over a real store until the test ends.
func start(t testing.TB, opts Options) *Registry {
	t.Helper()
	if !opts.ServiceCIDR.IsValid() {
		opts.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/16")
	}
	r, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.New(store.Options{Dir: t.TempDir(), Kinds: r.Kinds(), NoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	r.Use(Wiring{Store: st})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- st.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	<-st.Ready()
	return r
}

var (
	pods        = corev1.SchemeGroupVersion.WithResource("pods")
	configMaps  = corev1.SchemeGroupVersion.WithResource("configmaps")
	services    = corev1.SchemeGroupVersion.WithResource("services")
	namespaces  = corev1.SchemeGroupVersion.WithResource("namespaces")
	deployments = appsv1.SchemeGroupVersion.WithResource("deployments")
	ipAddresses = networkingv1.SchemeGroupVersion.WithResource("ipaddresses")
)

func testPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "busybox"}}},
	}
}

func create[T store.Object](t testing.TB, r *Registry, name schema.GroupVersionResource, obj T) T {
	t.Helper()
	namespace := "default"
	if !r.Resource(name).Namespaced {
		namespace = ""
	}
	e, err := r.Resource(name).Create(t.Context(), namespace, obj, "test", &metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("Create %T: %v", obj, err)
	}
	return e.Object.(T)
}

func TestCreateFillsWhatUpstreamFills(t *testing.T) {
	r := start(t, Options{})
	pod := create(t, r, pods, testPod("a"))
	if pod.UID == "" || pod.CreationTimestamp.IsZero() || pod.ResourceVersion == "" || pod.Namespace != "default" {
		t.Errorf("metadata is %+v, want uid, time, revision and namespace", pod.ObjectMeta)
	}
	if pod.Spec.RestartPolicy != corev1.RestartPolicyAlways || pod.Status.Phase != corev1.PodPending || pod.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("policy %q, phase %q, class %q; want the defaults", pod.Spec.RestartPolicy, pod.Status.Phase, pod.Status.QOSClass)
	}
	if len(pod.ManagedFields) != 1 || pod.ManagedFields[0].Manager != "test" || !strings.Contains(pod.ManagedFields[0].FieldsV1.GetRawString(), `f:image`) {
		t.Errorf("managedFields are %+v, want the creator's", pod.ManagedFields)
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		t.Errorf("type is %q %q, want v1 Pod", pod.APIVersion, pod.Kind)
	}
}

func TestCreateRefuses(t *testing.T) {
	r := start(t, Options{})
	create(t, r, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "taken"}})
	for name, tc := range map[string]struct {
		obj  store.Object
		want func(error) bool
		say  string
	}{
		"taken name":      {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "taken"}}, apierrors.IsAlreadyExists, `configmaps "taken" already exists`},
		"bad name":        {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "Not_Valid"}}, apierrors.IsInvalid, "metadata.name"},
		"other namespace": {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "other"}}, apierrors.IsBadRequest, "does not match"},
		"wrong type":      {testPod("x"), apierrors.IsBadRequest, "want"},
	} {
		t.Run(name, func(t *testing.T) {
			if p, ok := tc.obj.(*corev1.Pod); ok {
				p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
			}
			_, err := r.Resource(configMaps).Create(t.Context(), "default", tc.obj, "test", &metav1.CreateOptions{})
			if !tc.want(err) || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("Create = %v, want an error that says %q", err, tc.say)
			}
		})
	}
}

func TestPodsOfATemplateShareManagedFields(t *testing.T) {
	r := start(t, Options{})
	var first *byte
	for range 5 {
		template := testPod("")
		template.GenerateName = "web-"
		pod := create(t, r, pods, template)
		raw := pod.ManagedFields[0].FieldsV1.GetRawBytes()
		if first == nil {
			first = &raw[0]
		}
		if &raw[0] != first {
			t.Fatalf("%s has managed fields of its own, want those of the pod before", pod.Name)
		}
	}
}

func TestGenerateName(t *testing.T) {
	r := start(t, Options{})
	seen := make(map[string]bool)
	for range 20 {
		cm := create(t, r, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}})
		if !strings.HasPrefix(cm.Name, "x-") || len(cm.Name) != 7 || seen[cm.Name] {
			t.Fatalf("generated %q, want a new name x-nnnnn", cm.Name)
		}
		seen[cm.Name] = true
	}
}

func TestUpdateConflictsAndNoOps(t *testing.T) {
	r := start(t, Options{})
	cm := create(t, r, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	update := func(obj *corev1.ConfigMap) (*store.Entry, error) {
		e, _, err := r.Resource(configMaps).Update(t.Context(), "default", "a", "", obj, "test", &metav1.UpdateOptions{})
		return e, err
	}
	next := cm.DeepCopy()
	next.Data = map[string]string{"k": "v"}
	e, err := update(next.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := update(next.DeepCopy()); !apierrors.IsConflict(err) {
		t.Errorf("stale update = %v, want a conflict", err)
	}
	same := e.Object.(*corev1.ConfigMap).DeepCopy()
	if again, err := update(same); err != nil || again.Rev != e.Rev {
		t.Errorf("update without a change is at %d, %v; want %d", again.Rev, err, e.Rev)
	}
	free := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "w"}}
	if _, err := update(free); err != nil {
		t.Errorf("unconditional update = %v", err)
	}
	none := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "none"}}
	if _, _, err := r.Resource(configMaps).Update(t.Context(), "default", "none", "", none, "test", &metav1.UpdateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("update of nothing = %v, want not found", err)
	}
	unnamed := &corev1.ConfigMap{Data: map[string]string{"k": "x"}}
	if _, _, err := r.Resource(configMaps).Update(t.Context(), "default", "a", "", unnamed, "test", &metav1.UpdateOptions{}); !apierrors.IsBadRequest(err) {
		t.Errorf("update without a name in the object = %v, want a bad request", err)
	}
}

func TestPatches(t *testing.T) {
	r := start(t, Options{})
	create(t, r, pods, testPod("a"))
	patch := func(kind types.PatchType, data, validation string) (*corev1.Pod, error) {
		e, _, err := r.Resource(pods).Patch(t.Context(), "default", "a", "", PatchRequest{
			Type: kind, Data: []byte(data), Manager: "test", Options: metav1.PatchOptions{FieldValidation: validation},
		})
		if err != nil {
			return nil, err
		}
		return e.Object.(*corev1.Pod), nil
	}
	for name, tc := range map[string]struct {
		kind types.PatchType
		data string
		want string
	}{
		"merge":     {types.MergePatchType, `{"metadata":{"labels":{"by":"merge"}}}`, "merge"},
		"strategic": {types.StrategicMergePatchType, `{"metadata":{"labels":{"by":"strategic"}}}`, "strategic"},
		"json":      {types.JSONPatchType, `[{"op":"add","path":"/metadata/labels/by","value":"json"}]`, "json"},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := patch(tc.kind, tc.data, "")
			if err != nil || pod.Labels["by"] != tc.want || pod.Labels["app"] != "web" {
				t.Fatalf("patch = %v, %v; want label by=%s and the old label kept", pod, err, tc.want)
			}
		})
	}
	if _, err := patch(types.MergePatchType, `{"spec":{"nonsense":1}}`, metav1.FieldValidationStrict); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `unknown field "spec.nonsense"`) {
		t.Errorf("strict patch with an unknown field = %v", err)
	}
	if _, err := patch(types.MergePatchType, `{"spec":{"containers":[]}}`, ""); !apierrors.IsInvalid(err) {
		t.Errorf("patch to an invalid object = %v, want invalid", err)
	}
}

func TestServerSideApply(t *testing.T) {
	r := start(t, Options{})
	apply := func(manager, value string, force bool) (*store.Entry, bool, error) {
		return r.Resource(configMaps).Patch(t.Context(), "default", "a", "", PatchRequest{
			Type: types.ApplyPatchType, Manager: manager, Options: metav1.PatchOptions{Force: &force},
			Data: fmt.Appendf(nil, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: %q}", value),
		})
	}
	e, created, err := apply("one", "1", false)
	if err != nil || !created || e.Object.(*corev1.ConfigMap).Data["k"] != "1" {
		t.Fatalf("first apply = %v, %v, %v; want a new object", e, created, err)
	}
	again, _, err := apply("one", "1", false)
	if err != nil || again.Rev != e.Rev {
		t.Errorf("same apply is at %d, %v; want no change from %d", again.Rev, err, e.Rev)
	}
	if _, _, err := apply("two", "2", false); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one"`) {
		t.Errorf("apply over another manager's field = %v, want a conflict that names it", err)
	}
	if e, _, err := apply("two", "2", true); err != nil || e.Object.(*corev1.ConfigMap).Data["k"] != "2" {
		t.Errorf("forced apply = %v, %v", e, err)
	}
}

func TestStatusIsApart(t *testing.T) {
	r := start(t, Options{})
	pod := create(t, r, pods, testPod("a")).DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	e, _, err := r.Resource(pods).Update(t.Context(), "default", "a", "", pod.DeepCopy(), "test", &metav1.UpdateOptions{})
	if err != nil || e.Object.(*corev1.Pod).Status.Phase != corev1.PodPending {
		t.Errorf("update of the object changed its status: %v, %v", e.Object.(*corev1.Pod).Status.Phase, err)
	}
	pod.ResourceVersion, pod.Labels = "", map[string]string{"app": "changed"}
	e, _, err = r.Resource(pods).Update(t.Context(), "default", "a", "status", pod, "test", &metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := e.Object.(*corev1.Pod); got.Status.Phase != corev1.PodRunning {
		t.Errorf("update of the status gives phase %s", got.Status.Phase)
	}
}

func TestBindingAndGracefulDeletion(t *testing.T) {
	r := start(t, Options{})
	create(t, r, pods, testPod("a"))
	bindTo := func(node string) error {
		_, err := r.Resource(pods).CreateSub(t.Context(), "default", "a", "binding",
			&corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}, &metav1.CreateOptions{})
		return err
	}
	if err := bindTo("n1"); err != nil {
		t.Fatal(err)
	}
	if err := bindTo("n2"); !apierrors.IsConflict(err) {
		t.Errorf("second binding = %v, want a conflict", err)
	}
	list, err := r.Resource(pods).List(t.Context(), "", ListOptions{Fields: fields.OneTermEqualSelector("spec.nodeName", "n1")})
	if err != nil || len(list.Entries) != 1 {
		t.Fatalf("pods of n1: %d, %v; want 1", len(list.Entries), err)
	}
	result, err := r.Resource(pods).Delete(t.Context(), "default", "a", &metav1.DeleteOptions{})
	if err != nil || result.Done || result.Entry.Object.GetDeletionTimestamp() == nil {
		t.Fatalf("delete of a bound pod = %+v, %v; want it marked", result, err)
	}
	result, err = r.Resource(pods).Delete(t.Context(), "default", "a", metav1.NewDeleteOptions(0))
	if err != nil || !result.Done {
		t.Fatalf("delete without grace = %+v, %v; want it gone", result, err)
	}
	if _, err := r.Resource(pods).Get(t.Context(), "default", "a", ""); !apierrors.IsNotFound(err) {
		t.Errorf("get = %v, want not found", err)
	}
}

func TestEvictionSaysWhy(t *testing.T) {
	r := start(t, Options{})
	pod := testPod("a")
	pod.Spec.NodeName = "n1"
	create(t, r, pods, pod)
	if _, err := r.Resource(pods).CreateSub(t.Context(), "default", "a", "eviction", &policyv1.Eviction{}, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e, err := r.Resource(pods).Get(t.Context(), "default", "a", "")
	if err != nil {
		t.Fatal(err)
	}
	got := e.Object.(*corev1.Pod)
	var reason string
	for _, c := range got.Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			reason = c.Reason
		}
	}
	if got.DeletionTimestamp == nil || reason != "EvictionByEvictionAPI" {
		t.Errorf("deletion at %v with reason %q; want it marked, EvictionByEvictionAPI", got.DeletionTimestamp, reason)
	}
}

func TestFinalizersHoldAnObject(t *testing.T) {
	r := start(t, Options{})
	create(t, r, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Finalizers: []string{"x.io/hold"}}})
	result, err := r.Resource(configMaps).Delete(t.Context(), "default", "a", &metav1.DeleteOptions{})
	if err != nil || result.Done {
		t.Fatalf("delete = %+v, %v; want it held", result, err)
	}
	_, _, err = r.Resource(configMaps).Patch(t.Context(), "default", "a", "", PatchRequest{
		Type: types.MergePatchType, Data: []byte(`{"metadata":{"finalizers":null}}`), Manager: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resource(configMaps).Get(t.Context(), "default", "a", ""); !apierrors.IsNotFound(err) {
		t.Errorf("get after the last finalizer went = %v, want not found", err)
	}
}

func TestNamespaceTermination(t *testing.T) {
	r := start(t, Options{})
	create(t, r, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	result, err := r.Resource(namespaces).Delete(t.Context(), "", "n", &metav1.DeleteOptions{})
	if err != nil || result.Done || result.Entry.Object.(*corev1.Namespace).Status.Phase != corev1.NamespaceTerminating {
		t.Fatalf("delete = %+v, %v; want it terminating", result, err)
	}
	ns := result.Entry.Object.(*corev1.Namespace).DeepCopy()
	ns.Spec.Finalizers = nil
	if _, _, err := r.Resource(namespaces).Update(t.Context(), "", "n", "finalize", ns, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resource(namespaces).Get(t.Context(), "", "n", ""); !apierrors.IsNotFound(err) {
		t.Errorf("get = %v, want not found", err)
	}
}

func TestServicesGetAddressesAndPorts(t *testing.T) {
	r := start(t, Options{ServiceCIDR: netip.MustParsePrefix("10.0.0.0/29"), NodePorts: PortRange{30000, 30003}})
	service := func(name, ip string, kind corev1.ServiceType) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, Type: kind, Ports: []corev1.ServicePort{{Port: 80}}},
		}
	}
	a := create(t, r, services, service("a", "10.0.0.3", corev1.ServiceTypeNodePort))
	if a.Spec.ClusterIP != "10.0.0.3" || len(a.Spec.ClusterIPs) != 1 || a.Spec.Ports[0].NodePort < 30000 || a.Spec.IPFamilies[0] != corev1.IPv4Protocol {
		t.Errorf("spec is %+v, want the chosen address, a node port and IPv4", a.Spec)
	}
	ip, err := r.Resource(ipAddresses).Get(t.Context(), "", "10.0.0.3", "")
	if err != nil || ip.Object.(*networkingv1.IPAddress).Spec.ParentRef.Name != "a" {
		t.Errorf("IPAddress = %v, %v; want one that names the service", ip, err)
	}
	if _, err := r.Resource(services).Create(t.Context(), "default", service("b", "10.0.0.3", ""), "test", &metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "already allocated") {
		t.Errorf("second claim = %v, want already allocated", err)
	}
	for i := range 5 {
		create(t, r, services, service(fmt.Sprintf("c%d", i), "", ""))
	}
	if _, err := r.Resource(services).Create(t.Context(), "default", service("full", "", ""), "test", &metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Errorf("create in a full range = %v", err)
	}
	if _, err := r.Resource(services).Delete(t.Context(), "default", "a", &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b := create(t, r, services, service("b", "", corev1.ServiceTypeNodePort))
	if b.Spec.ClusterIP != "10.0.0.3" {
		t.Errorf("the only free address is %s, want 10.0.0.3", b.Spec.ClusterIP)
	}
	headless := create(t, r, services, service("h", "None", ""))
	if headless.Spec.ClusterIP != "None" {
		t.Errorf("headless service has %s", headless.Spec.ClusterIP)
	}
}

func TestScale(t *testing.T) {
	r := start(t, Options{})
	labels := map[string]string{"app": "web"}
	create(t, r, deployments, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "d"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: testPod("x").Spec},
		},
	})
	e, err := r.Resource(deployments).GetSub(t.Context(), "default", "d", "scale", "")
	if err != nil || e.Object.(*autoscalingv1.Scale).Spec.Replicas != 1 || e.Object.(*autoscalingv1.Scale).Status.Selector != "app=web" {
		t.Fatalf("scale = %+v, %v", e, err)
	}
	e, _, err = r.Resource(deployments).Patch(t.Context(), "default", "d", "scale", PatchRequest{
		Type: types.MergePatchType, Data: []byte(`{"spec":{"replicas":3}}`), Manager: "test",
	})
	if err != nil || e.Object.(*autoscalingv1.Scale).Spec.Replicas != 3 {
		t.Fatalf("patched scale = %+v, %v", e, err)
	}
	d, _ := r.Resource(deployments).Get(t.Context(), "default", "d", "")
	if got := d.Object.(*appsv1.Deployment); *got.Spec.Replicas != 3 || got.Generation != 2 {
		t.Errorf("deployment has %d replicas at generation %d, want 3 at 2", *got.Spec.Replicas, got.Generation)
	}
}

func TestListSelectsAndPages(t *testing.T) {
	r := start(t, Options{})
	for i := range 5 {
		pod := testPod(fmt.Sprintf("p%d", i))
		pod.Labels["odd"] = fmt.Sprint(i % 2)
		create(t, r, pods, pod)
	}
	odd, _ := labels.Parse("odd=1")
	list, err := r.Resource(pods).List(t.Context(), "default", ListOptions{Labels: odd})
	if err != nil || len(list.Entries) != 2 {
		t.Errorf("odd pods: %d, %v; want 2", len(list.Entries), err)
	}
	if _, err := r.Resource(pods).List(t.Context(), "", ListOptions{Fields: fields.OneTermEqualSelector("spec.color", "x")}); !apierrors.IsBadRequest(err) {
		t.Errorf("unknown field = %v, want bad request", err)
	}
	var names []string
	next := ""
	for {
		page, err := r.Resource(pods).List(t.Context(), "", ListOptions{Limit: 2, Continue: next})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			names = append(names, e.Object.GetName())
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "p0 p1 p2 p3 p4" {
		t.Errorf("pages gave %s", got)
	}
	if _, err := r.Resource(pods).List(t.Context(), "", ListOptions{Continue: "garbage"}); !apierrors.IsBadRequest(err) {
		t.Errorf("bad continue token = %v, want bad request", err)
	}
}

func TestDryRunStoresNothing(t *testing.T) {
	r := start(t, Options{})
	opts := &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	e, err := r.Resource(pods).Create(t.Context(), "default", testPod("a"), "test", opts)
	if err != nil || e.Object.GetUID() == "" {
		t.Fatalf("dry run = %v, %v; want the object as it would be", e, err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := r.Resource(services).Create(t.Context(), "default", svc, "test", opts); err != nil {
		t.Fatal(err)
	}
	for _, name := range []schema.GroupVersionResource{pods, services, ipAddresses} {
		if list, err := r.Resource(name).List(t.Context(), "", ListOptions{}); err != nil || len(list.Entries) != 0 {
			t.Errorf("%s after dry runs: %d, %v; want none", name.Resource, len(list.Entries), err)
		}
	}
}

func BenchmarkCreatePod(b *testing.B) {
	r := start(b, Options{})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if _, err := r.Resource(pods).Create(b.Context(), "default", testPod(fmt.Sprintf("p%d", i)), "test", &metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMergePatch(b *testing.B) {
	r := start(b, Options{})
	filler := make(map[string]string)
	for i := range 7 {
		filler[fmt.Sprintf("key-%d", i)] = strings.Repeat("x", 90)
	}
	create(b, r, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: filler})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		_, _, err := r.Resource(configMaps).Patch(b.Context(), "default", "a", "", PatchRequest{
			Type: types.MergePatchType, Data: fmt.Appendf(nil, `{"data":{"key-0":"%d"}}`, i), Manager: "test",
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
