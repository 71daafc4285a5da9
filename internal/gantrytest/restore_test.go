package gantrytest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/store"
)

// TestInformerAcrossRestore lets an informer watch a cluster that is lost after its backup, and then the restored one at the same
// address: it must end with what the backup had.
func TestInformerAcrossRestore(t *testing.T) {
	old := Start(t, Options{})
	var handler atomic.Pointer[http.Handler]
	handler.Store(&old.Handler)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.WithContext(auth.InProcess(r.Context(), &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}))
		r.RemoteAddr = ""
		(*handler.Load()).ServeHTTP(w, r)
	}))
	defer server.Close()
	defer server.CloseClientConnections()
	for _, name := range []string{"kept", "changed", "deleted"} {
		put(t, old, name, "before")
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	seen := cache.NewStore(cache.MetaNamespaceKeyFunc)
	watch := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "configmaps", "default", fields.Everything())
	stop := make(chan struct{})
	reflector := cache.NewReflector(watch, &corev1.ConfigMap{}, seen, 0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		reflector.Run(stop)
	}()
	defer func() { close(stop); server.CloseClientConnections(); <-ended }()
	holds := func(want ...string) func() error {
		return func() error {
			var got []string
			for _, obj := range seen.List() {
				if cm := obj.(*corev1.ConfigMap); cm.Data["value"] != "" {
					got = append(got, cm.Name+"="+cm.Data["value"])
				}
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				return fmt.Errorf("the informer holds %v, want %v", got, want)
			}
			return nil
		}
	}
	old.Eventually("the informer lists", holds("changed=before", "deleted=before", "kept=before"))
	snapshot, err := old.ControlPlane.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	_, err = snapshot.WriteTo(&data)
	if err = errors.Join(err, snapshot.Close()); err != nil {
		t.Fatal(err)
	}
	put(t, old, "changed", "after")
	put(t, old, "late", "after")
	if err := old.Client.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "deleted"}}); err != nil {
		t.Fatal(err)
	}
	old.Eventually("the informer hears of what will be lost", holds("changed=after", "kept=before", "late=after"))

	dir := t.TempDir()
	if _, err := store.Restore(t.Context(), &data, store.RestoreOptions{Dir: filepath.Join(dir, "etcd")}); err != nil {
		t.Fatal(err)
	}
	keys, err := os.ReadFile(filepath.Join(old.Dir, "encryption.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "encryption.yaml"), keys, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	next := Start(t, Options{Dir: dir})
	handler.Store(&next.Handler)
	server.CloseClientConnections()
	old.Stop()
	next.Eventually("the informer lists again", holds("changed=before", "deleted=before", "kept=before"))
	put(t, next, "new", "now")
	next.Eventually("the informer goes on", holds("changed=before", "deleted=before", "kept=before", "new=now"))
	if next.ControlPlane.Revision() < store.RevisionGap {
		t.Errorf("the restored cluster is at revision %d", next.ControlPlane.Revision())
	}
}

func put(t *testing.T, c *Cluster, name, value string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"value": value}}
	err := c.Client.Create(t.Context(), cm.DeepCopy())
	if err != nil {
		err = c.Client.Update(t.Context(), cm)
	}
	if err != nil {
		t.Fatal(err)
	}
}
