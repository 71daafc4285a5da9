package auth

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	clientset "k8s.io/client-go/kubernetes/fake"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// factoryInformers gives informers over a fake clientset.
type factoryInformers struct {
	factory informers.SharedInformerFactory
}

func (f factoryInformers) GetInformer(ctx context.Context, object client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	rbac := f.factory.Rbac().V1()
	var informer toolscache.SharedIndexInformer
	switch object.(type) {
	case *rbacv1.ClusterRole:
		informer = rbac.ClusterRoles().Informer()
	case *rbacv1.Role:
		informer = rbac.Roles().Informer()
	case *rbacv1.ClusterRoleBinding:
		informer = rbac.ClusterRoleBindings().Informer()
	case *rbacv1.RoleBinding:
		informer = rbac.RoleBindings().Informer()
	default:
		informer = f.factory.Core().V1().Pods().Informer()
	}
	f.factory.Start(ctx.Done())
	return informer, nil
}

func newInformers(t *testing.T, objects ...runtime.Object) (factoryInformers, *clientset.Clientset) {
	clients := clientset.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(clients, 0)
	t.Cleanup(factory.Shutdown)
	return factoryInformers{factory}, clients
}

// eventually polls until ok or a long deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestFeedFollowsRolesAndPods(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	meta := metav1.ObjectMeta{Namespace: "n1", Name: "r"}
	source, clients := newInformers(t,
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}},
		&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "p"}, Spec: corev1.PodSpec{NodeName: "worker", ServiceAccountName: "sa"}})
	a := NewAuthorizer()
	if err := a.Feed(ctx, source); err != nil {
		t.Fatal(err)
	}
	may := func(info user.Info, verb, resource, subresource, name string) bool {
		decision, _, err := a.Authorize(ctx, &authorizer.AttributesRecord{User: info, Verb: verb, Namespace: "n1", Resource: resource,
			Subresource: subresource, Name: name, ResourceRequest: true})
		return err == nil && decision == authorizer.DecisionAllow
	}
	ann := &user.DefaultInfo{Name: "ann"}
	node := &user.DefaultInfo{Name: "system:node:worker", Groups: []string{user.NodesGroup}}
	if !may(ann, "get", "pods", "", "p") || !may(node, "create", "serviceaccounts", "token", "sa") {
		t.Fatal("what existed before Feed does not count after it")
	}
	if err := clients.RbacV1().RoleBindings("n1").Delete(ctx, "r", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := clients.CoreV1().Pods("n1").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss of both rights", func() bool {
		return !may(ann, "get", "pods", "", "p") && !may(node, "create", "serviceaccounts", "token", "sa")
	})
	cancel()
}

func TestAggregatorFollowsRoles(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	rules := []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{"example.com"}, Resources: []string{"things"}}}
	labels := map[string]string{"to": "all"}
	part := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "part", Labels: labels}, Rules: rules}
	all := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"},
		AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: labels}}}}
	c := fake.NewClientBuilder().WithScheme(clientscheme.Scheme).WithObjects(part, all).Build()
	source, clients := newInformers(t)
	aggregator, err := NewAggregator(c, source, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- aggregator.Run(ctx) }()
	if _, err := clients.RbacV1().ClusterRoles().Create(ctx, part, metav1.CreateOptions{}); err != nil { // the event
		t.Fatal(err)
	}
	eventually(t, "the aggregation", func() bool {
		var got rbacv1.ClusterRole
		return c.Get(ctx, client.ObjectKey{Name: "all"}, &got) == nil && len(got.Rules) == 1
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestNodeAsksBeforeTheGraphKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAuthorizer()
		node := &user.DefaultInfo{Name: "system:node:worker", Groups: []string{user.NodesGroup}}
		token := func(account string) bool {
			decision, _, err := a.Authorize(t.Context(), &authorizer.AttributesRecord{User: node, Verb: "create", Namespace: "n1",
				Resource: "serviceaccounts", Subresource: "token", Name: account, ResourceRequest: true})
			return err == nil && decision == authorizer.DecisionAllow
		}
		go func() {
			time.Sleep(graphLag / 2)
			a.setPod(nil, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "p"},
				Spec:       corev1.PodSpec{NodeName: "worker", ServiceAccountName: "sa"},
			})
		}()
		if !token("sa") {
			t.Error("a token for a pod that the graph knows a moment later is refused")
		}
		begun := time.Now()
		if token("other") {
			t.Error("a token that no pod uses is granted")
		}
		if waited := time.Since(begun); waited != graphLag {
			t.Errorf("the refusal took %v, want %v", waited, graphLag)
		}
	})
}
