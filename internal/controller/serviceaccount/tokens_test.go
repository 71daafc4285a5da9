package serviceaccount

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func tokenSecret(name, account string, annotations ...string) *corev1.Secret {
	out := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{"kubernetes.io/service-account.name": account}},
		Type: corev1.SecretTypeServiceAccountToken}
	for i := 0; i+1 < len(annotations); i += 2 {
		out.Annotations[annotations[i]] = annotations[i+1]
	}
	return out
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}, Secrets: []corev1.ObjectReference{{Name: "a"}, {Name: "other"}}}
		c := controllertest.New(t, account, tokenSecret("a", "web"), tokenSecret("gone", "nobody"),
			tokenSecret("earlier", "web", "kubernetes.io/service-account.uid", "u0"), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "plain"}})
		tc, err := NewTokens(c, c, TokensOptions{RootCA: []byte("PEM"), Token: func(_ context.Context, account *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
			return "token-of-" + account.Name + "-in-" + secret.Name, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tc.Run(ctx) }()
		settle := func() { time.Sleep(time.Second); synctest.Wait() }
		get := func(name string) (*corev1.Secret, error) {
			var out corev1.Secret
			err := c.Get(ctx, client.ObjectKey{Namespace: "shop", Name: name}, &out)
			return out.DeepCopy(), err
		}
		filled := func(when string) {
			t.Helper()
			got, err := get("a")
			if err != nil || string(got.Data["token"]) != "token-of-web-in-a" || string(got.Data["ca.crt"]) != "PEM" || string(got.Data["namespace"]) != "shop" ||
				got.Annotations["kubernetes.io/service-account.uid"] != "u1" {
				t.Errorf("%s: %+v, %v", when, got, err)
			}
		}
		settle()
		filled("at first")
		for _, name := range []string{"gone", "earlier"} {
			if _, err := get(name); !apierrors.IsNotFound(err) {
				t.Errorf("a token of no account stays: %s, %v", name, err)
			}
		}
		got, _ := get("a")
		delete(got.Data, "token")
		got.Data["ca.crt"] = []byte("forged")
		if err := c.Update(ctx, got); err != nil {
			t.Fatal(err)
		}
		settle()
		filled("after it was tampered with")
		writes := c.Writes()
		settle()
		if c.Writes() != writes {
			t.Error("written again with nothing to do")
		}
		got, _ = get("a")
		if err := c.Delete(ctx, got); err != nil {
			t.Fatal(err)
		}
		settle()
		var now corev1.ServiceAccount
		if err := c.Get(ctx, client.ObjectKeyFromObject(account), &now); err != nil || len(now.Secrets) != 1 || now.Secrets[0].Name != "other" {
			t.Errorf("references after the delete: %+v, %v", now.Secrets, err)
		}
		if err := c.Create(ctx, tokenSecret("b", "web")); err != nil {
			t.Fatal(err)
		}
		settle()
		if err := c.Delete(ctx, account); err != nil {
			t.Fatal(err)
		}
		settle()
		if _, err := get("b"); !apierrors.IsNotFound(err) {
			t.Errorf("a token outlived its account: %v", err)
		}
		if _, err := get("plain"); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}
