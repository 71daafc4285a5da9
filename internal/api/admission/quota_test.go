package admission_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/gantrytest"
)

// quota makes one and waits until its status tells what is used.
func (w *world) quota(t *testing.T, ns string, hard map[corev1.ResourceName]string, scopes ...corev1.ResourceQuotaScope) {
	t.Helper()
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{}, Scopes: scopes}}
	for name, amount := range hard {
		q.Spec.Hard[name] = resource.MustParse(amount)
	}
	if _, err := w.CoreV1().ResourceQuotas(ns).Create(t.Context(), q, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the quota's status", func() error {
		got, err := w.CoreV1().ResourceQuotas(ns).Get(t.Context(), "q", metav1.GetOptions{})
		if err == nil && len(got.Status.Used) != len(hard) {
			err = fmt.Errorf("used %v", got.Status.Used)
		}
		return err
	})
}

func (w *world) used(t *testing.T, ns string, name corev1.ResourceName, want string) {
	t.Helper()
	w.Eventually(fmt.Sprintf("%s used of %s", want, name), func() error {
		got, err := w.CoreV1().ResourceQuotas(ns).Get(t.Context(), "q", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if used := got.Status.Used[name]; used.Cmp(resource.MustParse(want)) != 0 {
			return fmt.Errorf("used %s", used.String())
		}
		return nil
	})
}

func TestQuota(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns, free := w.namespace(t, nil), w.namespace(t, nil)
	w.quota(t, ns, map[corev1.ResourceName]string{
		"pods": "2", "requests.cpu": "1", "configmaps": "3", "count/deployments.apps": "1", "services.nodeports": "1", "count/leases.coordination.k8s.io": "1",
	})
	w.used(t, ns, "configmaps", "1")
	asking := func(name, cpu string) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Name = name
			if cpu != "" {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
			}
		})
	}
	create := func(ns string, p *corev1.Pod) error {
		_, err := w.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		return err
	}
	wantError(t, "no request", create(ns, asking("a", "")), "failed quota: q: must specify requests.cpu for: c")
	wantError(t, "half", create(ns, asking("a", "600m")), "")
	w.used(t, ns, "requests.cpu", "600m")
	err := create(ns, asking("b", "500m"))
	wantError(t, "too much", err, "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1")
	if !apierrors.IsForbidden(err) {
		t.Errorf("%v is not forbidden", err)
	}
	wantError(t, "another namespace", create(free, asking("a", "5")), "")
	dry := asking("d", "400m")
	if _, err := w.CoreV1().Pods(ns).Create(t.Context(), dry, metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Errorf("dry run: %v", err)
	}
	w.used(t, ns, "requests.cpu", "600m")
	zero := int64(0)
	if err := w.CoreV1().Pods(ns).Delete(t.Context(), "a", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	w.used(t, ns, "requests.cpu", "0")
	w.used(t, ns, "pods", "0")
	wantError(t, "when there is room again", create(ns, asking("b", "500m")), "")
}

// TestQuotaHoldsAgainstManyAtOnce is what the compare-and-swap is for.
func TestQuotaHoldsAgainstManyAtOnce(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	w.quota(t, ns, map[corev1.ResourceName]string{"secrets": "10"})
	var made atomic.Int32
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)}}
			_, err := w.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{})
			switch {
			case err == nil:
				made.Add(1)
			case !apierrors.IsForbidden(err):
				t.Errorf("create: %v", err)
			}
		})
	}
	group.Wait()
	if n := made.Load(); n != 10 {
		t.Errorf("%d secrets were made under a quota of 10", n)
	}
	w.used(t, ns, "secrets", "10")
}

func TestQuotaScopes(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	w.quota(t, ns, map[corev1.ResourceName]string{"pods": "1"}, corev1.ResourceQuotaScopeBestEffort)
	create := func(name string, bestEffort bool) error {
		p := pod(func(p *corev1.Pod) {
			p.Name = name
			if !bestEffort {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
			}
		})
		_, err := w.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		return err
	}
	wantError(t, "the first", create("a", true), "")
	wantError(t, "the second", create("b", true), "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")
	wantError(t, "out of scope", create("c", false), "")
}

func TestLimitRanges(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	amount := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	limits := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypeContainer, Default: amount("500m", "500Mi"), DefaultRequest: amount("100m", "200Mi"), Min: amount("50m", "100Mi"), Max: amount("500m", "500Mi"),
			MaxLimitRequestRatio: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10")}},
		{Type: corev1.LimitTypePersistentVolumeClaim, Max: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}}
	if _, err := w.CoreV1().LimitRanges(ns).Create(t.Context(), limits, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r := made.Spec.Containers[0].Resources; r.Requests.Cpu().String() != "100m" || r.Limits.Memory().String() != "500Mi" {
		t.Errorf("resources %+v; want the range's defaults", r)
	}
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) {
		p.Name = "small"
		p.Spec.Containers[0].Resources.Requests = amount("10m", "50Mi")
	}), metav1.CreateOptions{})
	wantError(t, "below the minimum", err, "minimum memory usage per Container is 100Mi, but request is 50Mi")
	if !apierrors.IsForbidden(err) {
		t.Errorf("%v is not forbidden", err)
	}
	_, err = w.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "big"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}}}}, metav1.CreateOptions{})
	wantError(t, "a claim that is too large", err, "maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi")
	if err := w.CoreV1().LimitRanges(ns).Delete(t.Context(), "l", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) {
		p.Name = "small"
		p.Spec.Containers[0].Resources.Requests = amount("10m", "50Mi")
	}), metav1.CreateOptions{})
	wantError(t, "without the range", err, "")
}

func TestProtectedClaimsGo(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	ctx := t.Context()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}
	if _, err := w.CoreV1().PersistentVolumeClaims(ns).Create(ctx, claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	user := pod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	})
	if _, err := w.CoreV1().Pods(ns).Create(ctx, user, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.CoreV1().PersistentVolumeClaims(ns).Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if c, err := w.CoreV1().PersistentVolumeClaims(ns).Get(ctx, "c", metav1.GetOptions{}); err != nil || c.DeletionTimestamp == nil {
		t.Fatalf("a claim in use is %v, %v; want there and on its way", c, err)
	}
	zero := int64(0)
	if err := w.CoreV1().Pods(ns).Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the claim's end", func() error {
		_, err := w.CoreV1().PersistentVolumeClaims(ns).Get(ctx, "c", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}
