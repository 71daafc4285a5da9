package bootstrap

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cluster-bootstrap/token/jws"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func token(id string, data map[string]string) *corev1.Secret {
	all := map[string][]byte{"token-id": []byte(id), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-signing": []byte("true")}
	for key, value := range data {
		all[key] = []byte(value)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: "bootstrap.kubernetes.io/token", Data: all}
}

func expiring(after time.Duration) map[string]string {
	return map[string]string{"expiration": time.Now().Add(after).UTC().Format(time.RFC3339)}
}

func TestCleanerAndSigner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := token("oooooo", expiring(-time.Hour))
		other.Namespace = "default"
		c := controllertest.New(t, token("aaaaaa", nil), token("bbbbbb", expiring(time.Hour)), token("cccccc", expiring(-time.Hour)),
			token("dddddd", map[string]string{"expiration": "some day"}), token("eeeeee", map[string]string{"usage-bootstrap-signing": "false"}),
			token("ffffff", map[string]string{"token-id": "gggggg"}), other,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "cluster-info"}, Data: map[string]string{"kubeconfig": "text", "jws-kubeconfig-zzzzzz": "old"}})
		cleaner, err := NewCleaner(c, c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		signer, err := NewSigner(c, c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- cleaner.Run(ctx) }()
		go func() { done <- signer.Run(ctx) }()
		settle := func(after time.Duration) { time.Sleep(after); synctest.Wait() }
		signatures := func() []string {
			var info corev1.ConfigMap
			if err := c.Get(ctx, client.ObjectKey{Namespace: "kube-public", Name: "cluster-info"}, &info); err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{"aaaaaa", "bbbbbb"} {
				if signature := info.Data["jws-kubeconfig-"+id]; signature != "" && !jws.DetachedTokenIsValid(signature, info.Data["kubeconfig"], id, "0123456789abcdef") {
					t.Errorf("the signature of %s is not valid: %s", id, signature)
				}
			}
			return slices.Sorted(maps.Keys(info.Data))
		}
		exists := func(namespace, id string) bool {
			err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "bootstrap-token-" + id}, &corev1.Secret{})
			if err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
			return err == nil
		}
		settle(time.Second)
		if got := signatures(); !slices.Equal(got, []string{"jws-kubeconfig-aaaaaa", "jws-kubeconfig-bbbbbb", "kubeconfig"}) {
			t.Errorf("cluster-info has %v", got)
		}
		for id, want := range map[string]bool{"aaaaaa": true, "bbbbbb": true, "cccccc": false, "dddddd": false, "eeeeee": true, "ffffff": true} {
			if exists("kube-system", id) != want {
				t.Errorf("token %s is there: %v", id, !want)
			}
		}
		if !exists("default", "oooooo") {
			t.Error("a Secret outside of kube-system was removed")
		}
		settle(2 * time.Hour)
		if exists("kube-system", "bbbbbb") {
			t.Error("an expired token stays")
		}
		if got := signatures(); !slices.Equal(got, []string{"jws-kubeconfig-aaaaaa", "kubeconfig"}) {
			t.Errorf("cluster-info has %v after a token expired", got)
		}
		changed := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "cluster-info"}, Data: map[string]string{"kubeconfig": "changed"}}
		if err := c.Update(ctx, changed); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := signatures(); !slices.Equal(got, []string{"jws-kubeconfig-aaaaaa", "kubeconfig"}) {
			t.Errorf("cluster-info has %v after it changed", got)
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("Run = %v", err)
			}
		}
	})
}
