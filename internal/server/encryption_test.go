package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// runPlane runs a control plane over dir until stop is called.
func runPlane(t *testing.T, dir string) (cp *ControlPlane, stop func()) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cp, err = NewControlPlane(ctx, ControlPlaneOptions{
		EtcdDir: filepath.Join(dir, "etcd"), EncryptionKey: filepath.Join(dir, "encryption.yaml"),
		ClientCAs: func() *x509.CertPool { return nil }, SigningKey: key, RootCA: []byte("test"),
		PodCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), ClusterDomain: "cluster.local", NoFsync: true,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cp.Run(ctx) }()
	select {
	case <-cp.Ready():
	case err := <-ended:
		cancel()
		t.Fatalf("the control plane ended at its start: %v", err)
	}
	return cp, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// providerFile says that resources are encrypted with keys of those names, the first in use.
func providerFile(t *testing.T, dir, resources string, keys ...string) {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [%s]\n  providers:\n", resources)
	if len(keys) > 0 {
		text.WriteString("  - secretbox:\n      keys:\n")
	}
	for _, key := range keys {
		secret := bytes.Repeat([]byte(key), 32)[:32]
		fmt.Fprintf(&text, "      - {name: %s, secret: %s}\n", key, base64.StdEncoding.EncodeToString(secret))
	}
	text.WriteString("  - identity: {}\n")
	if err := os.WriteFile(filepath.Join(dir, "encryption.yaml"), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// onDisk counts text in all of etcd's files.
func onDisk(t *testing.T, dir, text string) int {
	t.Helper()
	count := 0
	err := filepath.WalkDir(filepath.Join(dir, "etcd"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		count += bytes.Count(data, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func testSecret(name, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{"k": []byte(value)}}
}

// The whole way from one key to another, as docs/howto/rotate-keys.md describes it.
func TestKeyRotation(t *testing.T) {
	dir := t.TempDir()
	providerFile(t, dir, "secrets", "one")
	cp, stop := runPlane(t, dir)
	ctx := t.Context()
	for i := range 3 {
		if err := cp.admin.Create(ctx, testSecret(fmt.Sprintf("old-%d", i), "plainly-hidden")); err != nil {
			t.Fatal(err)
		}
	}
	if err := cp.admin.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Data: map[string]string{"k": "plainly-visible"}}); err != nil {
		t.Fatal(err)
	}
	reload := func() (bool, error) { return cp.encryption.reload(ctx, cp.store, cp.tables) }
	if changed, err := reload(); changed || err != nil {
		t.Errorf("a file that did not change: %v, %v", changed, err)
	}
	providerFile(t, dir, "secrets", "two")
	if changed, err := reload(); changed || err == nil || !strings.Contains(err.Error(), "could not be read any more") {
		t.Errorf("a file without the key that is in use: %v, %v", changed, err)
	}
	providerFile(t, dir, "secrets", "two", "one")
	if changed, err := reload(); !changed || err != nil {
		t.Fatalf("a file with a further key: %v, %v", changed, err)
	}
	if err := cp.admin.Create(ctx, testSecret("new", "plainly-hidden")); err != nil {
		t.Fatal(err)
	}
	var secrets corev1.SecretList
	if err := cp.admin.List(ctx, &secrets); err != nil || len(secrets.Items) != 4 {
		t.Fatalf("%d Secrets, %v", len(secrets.Items), err)
	}
	for i := range secrets.Items { // what kubectl replace does
		name := secrets.Items[i].Name
		if stale, err := cp.store.Stale(ctx, "secrets", "default/"+name); err != nil || stale != (name != "new") {
			t.Errorf("%s is stale: %v, %v", name, stale, err)
		}
		if err := cp.admin.Update(ctx, secrets.Items[i].DeepCopy()); err != nil {
			t.Fatal(err)
		}
		var now corev1.Secret
		if err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(&secrets.Items[i]), &now); err != nil || (now.ResourceVersion == secrets.Items[i].ResourceVersion) != (name == "new") {
			t.Errorf("%s went from revision %s to %s, %v", name, secrets.Items[i].ResourceVersion, now.ResourceVersion, err)
		}
		if stale, err := cp.store.Stale(ctx, "secrets", "default/"+name); err != nil || stale {
			t.Errorf("%s is stale after it was written: %v, %v", name, stale, err)
		}
	}
	providerFile(t, dir, "secrets", "two")
	if changed, err := reload(); !changed || err != nil {
		t.Fatalf("a file without the key that nothing needs: %v, %v", changed, err)
	}
	stop()
	if onDisk(t, dir, "plainly-hidden") != 0 || onDisk(t, dir, "plainly-visible") == 0 || onDisk(t, dir, "k8s:enc:secretbox:v1:two:") == 0 {
		t.Error("what is on disk is not as it should be")
	}
	cp, stop = runPlane(t, dir) // etcd's history still has values of the key that is gone
	defer stop()
	for _, name := range []string{"old-0", "old-1", "old-2", "new"} {
		var got corev1.Secret
		if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: "default", Name: name}, &got); err != nil || string(got.Data["k"]) != "plainly-hidden" {
			t.Errorf("%s after the restart: %v, %v", name, got.Data, err)
		}
	}
}

// Resources beside Secrets, by name and by wildcard, and back again.
func TestEncryptionOfOtherResources(t *testing.T) {
	dir := t.TempDir()
	providerFile(t, dir, `"*.", deployments.apps`, "one")
	cp, stop := runPlane(t, dir)
	ctx := t.Context()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Data: map[string]string{"k": "plainly-hidden"}}
	if err := cp.admin.Create(ctx, object); err != nil {
		t.Fatal(err)
	}
	stop()
	if onDisk(t, dir, "plainly-hidden") != 0 || onDisk(t, dir, "k8s:enc:secretbox:v1:one:") == 0 {
		t.Error("a ConfigMap is in the clear")
	}
	cp, stop = runPlane(t, dir)
	var got corev1.ConfigMap
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(object), &got); err != nil || got.Data["k"] != "plainly-hidden" {
		t.Errorf("after a restart: %v, %v", got.Data, err)
	}
	stop()
}

func TestEncryptionFileMustBeThereWhenNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := loadEncryption(t.Context(), path, false, nil); err == nil {
		t.Error("a missing file is taken")
	}
	if _, err := loadEncryption(t.Context(), path, true, nil); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the new file: %v, %v", info, err)
	}
}
