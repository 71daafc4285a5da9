//go:build linux

package wayout

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

const (
	binEnv = "GANTRY_TEST_BIN" // folder of gantry and kubectl
	root   = "../../.."        // of the repository
)

func TestUpstreamTakesTheDataOver(t *testing.T) {
	bin := os.Getenv(binEnv)
	if bin == "" {
		t.Skipf("%s does not say where the programs are; \"make conformance\" does", binEnv)
	}
	programs, newEtcd := build(t)
	left := leave(t, bin)
	taken := takeOver(t, left, programs, newEtcd)

	t.Run("every object is there as it was", func(t *testing.T) { compare(t, left.objects, list(t, taken)) })
	t.Run("a token of a service account is good", func(t *testing.T) { tokenIsGood(t, taken, left.token) })
	t.Run("addresses and ports in use are not given again", func(t *testing.T) { rangesHold(t, taken, left) })
	t.Run("it writes", func(t *testing.T) { writes(t, taken) })
}

// build makes upstream's programs and the etcd that Gantry has inside.
func build(t *testing.T) (programs, newEtcd string) {
	t.Helper()
	programs, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/upstream/programs", Cache: root + "/.cache/upstream", Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root, Cache: root + "/.cache/etcd", Log: t.Output(),
		Programs: []upstream.Program{{Name: "etcd-new", Package: "go.etcd.io/etcd/server/v3"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return programs, filepath.Join(dir, "etcd-new")
}

// remains are what a Gantry cluster has left.
type remains struct {
	etcd, pki string // folders, copies
	objects   map[string]object
	token     string // of service account shop/web
}

// leave runs a cluster with an object of every kind and ends it the hard way.
func leave(t *testing.T, bin string) remains {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	config, err := c.Rest()
	if err != nil {
		t.Fatal(err)
	}
	applyAll(t, config, "testdata/objects.yaml")
	client := kubernetes.NewForConfigOrDie(config)
	settled(t, client)
	request, err := client.CoreV1().ServiceAccounts("shop").CreateToken(t.Context(), "web", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	left := remains{objects: list(t, config), token: request.Status.Token}
	if err := c.Kill(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	left.etcd, left.pki = filepath.Join(dir, "etcd"), filepath.Join(dir, "pki")
	for from, to := range map[string]string{"etcd": left.etcd, "pki": left.pki} {
		if said, err := exec.Command("cp", "-a", filepath.Join(c.Dir, from), to).CombinedOutput(); err != nil {
			t.Fatalf("copying %s: %v: %s", from, err, said)
		}
	}
	return left
}

// settled waits until the controllers have done what the objects ask for.
func settled(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	eventually(t, "the controllers are done", time.Minute, func() error {
		web, err := client.AppsV1().Deployments("shop").Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{FieldSelector: "status.phase=Pending", LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if len(pods.Items[i].Status.Conditions) == 0 {
				return errNotYet("a pod has not been looked at by the scheduler")
			}
		}
		if len(pods.Items) != 2 || web.Status.ObservedGeneration != web.Generation || web.Status.Replicas != 2 {
			return errNotYet("the deployment's pods are not there")
		}
		return nil
	})
}

// takeOver starts upstream on what is left.
func takeOver(t *testing.T, left remains, programs, newEtcd string) *rest.Config {
	t.Helper()
	dir := t.TempDir()
	taken, err := upstream.TakeOver(t.Context(), upstream.TakeOverOptions{
		Programs: programs, NewEtcd: newEtcd, Dir: dir, EtcdDir: left.etcd, PKI: left.pki,
		Inspect: func(ctx context.Context, gateway string) error { return inspect(ctx, t, gateway, left.objects) },
	})
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, name := range []string{"kube-apiserver", "etcd"} {
			text, _ := os.ReadFile(filepath.Join(dir, name+".log"))
			t.Logf("the end of %s's log:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := taken.Stop(); err != nil {
			t.Error(err)
		}
	})
	config, err := clientcmd.BuildConfigFromFlags("", taken.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst, config.WarningHandler = 1000, 1000, rest.NoWarnings{}
	client := kubernetes.NewForConfigOrDie(config)
	eventually(t, "kube-apiserver is ready", time.Minute, func() error {
		if err := taken.Check(); err != nil {
			t.Fatal(err)
		}
		return client.RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
	return config
}

// tokenIsGood asks upstream who the holder of a token of Gantry's is.
func tokenIsGood(t *testing.T, config *rest.Config, token string) {
	config = rest.AnonymousClientConfig(config)
	config.BearerToken = token
	review, err := kubernetes.NewForConfigOrDie(config).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := review.Status.UserInfo.Username, "system:serviceaccount:shop:web"; got != want {
		t.Errorf("the token is %s's, want %s's", got, want)
	}
}

// rangesHold tries to get what services of Gantry's have, and gets something else.
func rangesHold(t *testing.T, config *rest.Config, left remains) {
	services := kubernetes.NewForConfigOrDie(config).CoreV1().Services("shop")
	taken := func(port int32, ip string) *corev1.Service {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{GenerateName: "new-"}, Spec: corev1.ServiceSpec{
			ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}},
		}}
		if ip == "" {
			service.Spec.Type = corev1.ServiceTypeNodePort
		}
		return service
	}
	ports, ips := left.inUse(t)
	if len(ports) < 4 || len(ips) < 5 {
		t.Fatalf("node ports %v and cluster IPs %v are in use; the manifest asks for more", ports, ips)
	}
	for _, port := range ports {
		if _, err := services.Create(t.Context(), taken(port, ""), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("node port %d, which is in use: %v, want invalid", port, err)
		}
	}
	for _, ip := range ips {
		if _, err := services.Create(t.Context(), taken(0, ip), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("cluster IP %s, which is in use: %v, want invalid", ip, err)
		}
	}
	created, err := services.Create(t.Context(), taken(0, ""), metav1.CreateOptions{})
	if err != nil || created.Spec.ClusterIP == "" || created.Spec.Ports[0].NodePort == 0 {
		t.Errorf("a new service: %v, %v; want an address and a port", created.Spec, err)
	}
}

// writes changes what Gantry has made, in every way.
func writes(t *testing.T, config *rest.Config) {
	ctx, client := t.Context(), kubernetes.NewForConfigOrDie(config)
	secret, err := client.CoreV1().Secrets("shop").Get(ctx, "password", metav1.GetOptions{})
	if err != nil || string(secret.Data["password"]) != "correct horse" {
		t.Fatalf("the secret is %q, %v", secret.Data, err)
	}
	secret.Data["password"] = []byte("battery staple")
	if _, err := client.CoreV1().Secrets("shop").Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Errorf("update of a secret: %v", err)
	}
	if _, err := client.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("create of a config map: %v", err)
	}
	web, err := client.AppsV1().Deployments("shop").Patch(ctx, "web", types.StrategicMergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{})
	if err != nil || *web.Spec.Replicas != 3 || web.Generation != 2 {
		t.Errorf("patch of a deployment: %v, %v", web.Spec, err)
	}
	// The fields' owner at Gantry is their owner here: another one conflicts, the same one does not.
	apply := func(manager string) error {
		_, err := client.CoreV1().Namespaces().Patch(ctx, "shop", types.ApplyPatchType,
			[]byte(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"team":"other"}}}`), metav1.PatchOptions{FieldManager: manager})
		return err
	}
	if err := apply("stranger"); !apierrors.IsConflict(err) {
		t.Errorf("apply by another manager: %v, want a conflict", err)
	}
	if err := apply(manager); err != nil {
		t.Errorf("apply by the same manager: %v", err)
	}
	if err := client.CoreV1().Services("shop").Delete(ctx, "door", metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete of a service: %v", err)
	}
	if err := client.CoreV1().Pods("shop").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=web"}); err != nil {
		t.Errorf("delete of pods: %v", err)
	}
}
