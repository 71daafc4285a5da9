package serviceaccount

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func TestEveryNamespaceGetsBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controllertest.New(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		sc, err := New(c, c, Options{RootCA: []byte("PEM")})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- sc.Run(ctx) }()
		check := func(when string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			var account corev1.ServiceAccount
			if err := c.Get(ctx, types.NamespacedName{Namespace: "shop", Name: "default"}, &account); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			var ca corev1.ConfigMap
			if err := c.Get(ctx, types.NamespacedName{Namespace: "shop", Name: "kube-root-ca.crt"}, &ca); err != nil || ca.Data["ca.crt"] != "PEM" || ca.Annotations[annotationDescription] == "" {
				t.Errorf("%s: %+v, %v", when, ca, err)
			}
		}
		check("at first")
		if err := c.DeleteAllOf(ctx, &corev1.ServiceAccount{}, client.InNamespace("shop")); err != nil {
			t.Fatal(err)
		}
		changed := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": "forged"}}
		if err := c.Update(ctx, changed); err != nil {
			t.Fatal(err)
		}
		check("after they were tampered with")
		writes := c.Writes()
		check("later")
		if c.Writes() != writes {
			t.Error("written again with nothing to do")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}
