//go:build linux

package wayout

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"gantry.dev/gantry/test/upstream"
)

// manager applies the manifest.
const manager = "wayout"

type errNotYet string

func (e errNotYet) Error() string { return string(e) }

// eventually calls check until it returns nil, or fails the test with its last error.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v (after %v)", what, err, limit)
		}
		time.Sleep(50 * time.Millisecond) // between two looks, not instead of one
	}
}

// applyAll applies a manifest, object by object, in its order. An object whose kind is defined
// just before it may take a moment.
func applyAll(t *testing.T, config *rest.Config, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("REQUEST"), []byte(certificateRequest(t)))
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	client := dynamic.NewForConfigOrDie(config)
	for {
		var obj unstructured.Unstructured
		if err := decoder.Decode(&obj.Object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if len(obj.Object) == 0 {
			continue
		}
		eventually(t, "apply "+obj.GetKind()+" "+obj.GetName(), 5*time.Second, func() error {
			groups, err := restmapper.GetAPIGroupResources(discovery.NewDiscoveryClientForConfigOrDie(config))
			if err != nil {
				return err
			}
			mapping, err := restmapper.NewDiscoveryRESTMapper(groups).RESTMapping(obj.GroupVersionKind().GroupKind(), obj.GroupVersionKind().Version)
			if err != nil {
				return err
			}
			var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
			if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
				resource = client.Resource(mapping.Resource).Namespace(obj.GetNamespace())
			}
			_, err = resource.Apply(t.Context(), obj.GetName(), &obj, metav1.ApplyOptions{FieldManager: manager})
			return err
		})
	}
}

// certificateRequest is a signing request in PEM and base64.
func certificateRequest(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// object is an object as a server lists it.
type object struct {
	resource schema.GroupVersionResource
	content  *unstructured.Unstructured
}

// list gets every object in every version that a server serves.
func list(t *testing.T, config *rest.Config) map[string]object {
	t.Helper()
	_, lists, err := discovery.NewDiscoveryClientForConfigOrDie(config).ServerGroupsAndResources()
	if broken := (*discovery.ErrGroupDiscoveryFailed)(nil); err != nil && !errors.As(err, &broken) {
		t.Fatal(err) // the group of an APIService without a server is broken at both
	}
	client := dynamic.NewForConfigOrDie(config)
	found := make(map[string]object)
	for _, group := range lists {
		version, err := schema.ParseGroupVersion(group.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for i := range group.APIResources {
			r := &group.APIResources[i]
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || r.Name == "componentstatuses" {
				continue
			}
			resource := version.WithResource(r.Name)
			objects, err := client.Resource(resource).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatalf("list %s: %v", resource, err)
			}
			if len(objects.Items) == 0 {
				t.Errorf("there is no object of %s to compare", resource)
			}
			for i := range objects.Items {
				obj := &objects.Items[i]
				found[fmt.Sprintf("%s %s/%s", resource, obj.GetNamespace(), obj.GetName())] = object{resource, obj}
			}
		}
	}
	return found
}

// changing are resources that the servers themselves write while they run: they may have got
// another revision since, but not another identity.
func changing(resource string) bool {
	return slices.Contains([]string{"leases", "nodes", "flowschemas", "prioritylevelconfigurations", "apiservices"}, resource)
}

// compare requires that every object of Gantry's is at upstream the same to the last field.
func compare(t *testing.T, gantry, upstream map[string]object) {
	t.Logf("%d objects and views of objects", len(gantry))
	for _, key := range slices.Sorted(maps.Keys(gantry)) {
		was, is := gantry[key], upstream[key]
		switch {
		case is.content == nil:
			t.Errorf("%s is not there", key)
		case was.content.GetUID() != is.content.GetUID():
			t.Errorf("%s is another object", key)
		case changing(was.resource.Resource) && was.content.GetResourceVersion() != is.content.GetResourceVersion():
		default:
			if diff := cmp.Diff(was.content.Object, is.content.Object); diff != "" {
				t.Errorf("%s (-gantry +upstream):\n%s", key, diff)
			}
		}
	}
}

// inUse are the node ports and cluster IPs of the services.
func (r remains) inUse(t *testing.T) (ports []int32, ips []string) {
	t.Helper()
	for _, obj := range r.objects {
		if obj.resource != corev1.SchemeGroupVersion.WithResource("services") {
			continue
		}
		var service corev1.Service
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.content.Object, &service); err != nil {
			t.Fatal(err)
		}
		if service.Spec.ClusterIP != "" && service.Spec.ClusterIP != corev1.ClusterIPNone {
			ips = append(ips, service.Spec.ClusterIP)
		}
		for _, port := range service.Spec.Ports {
			if port.NodePort != 0 {
				ports = append(ports, port.NodePort)
			}
		}
		if service.Spec.HealthCheckNodePort != 0 {
			ports = append(ports, service.Spec.HealthCheckNodePort)
		}
	}
	slices.Sort(ports)
	return ports, ips
}

// inspect looks at etcd before upstream's API server has repaired anything.
func inspect(ctx context.Context, t *testing.T, gateway string, objects map[string]object) error {
	values, err := etcdRange(ctx, gateway, "/registry/secrets/")
	if err != nil {
		return err
	}
	for key, value := range values {
		if !bytes.HasPrefix(value, []byte("k8s:enc:")) || bytes.Contains(value, []byte("correct horse")) {
			t.Errorf("%s is not encrypted", key)
		}
	}
	if len(values) == 0 {
		t.Error("there are no secrets in etcd")
	}
	values, err = etcdRange(ctx, gateway, "/registry/ranges/")
	if err != nil {
		return err
	}
	want, _ := remains{objects: objects}.inUse(t)
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(values["/registry/ranges/servicenodeports"], nil, nil)
	if err != nil {
		return fmt.Errorf("decoding the range of node ports: %w", err)
	}
	allocation, ok := decoded.(*corev1.RangeAllocation)
	if !ok || allocation.Range != "30000-32767" {
		t.Errorf("the range of node ports is %v", decoded)
		return nil
	}
	var got []int32
	bits := new(big.Int).SetBytes(allocation.Data)
	for i := range bits.BitLen() {
		if bits.Bit(i) == 1 {
			got = append(got, 30000+int32(i))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("node ports marked in etcd: %v, in use: %v", got, want)
	}
	return nil
}

// etcdRange reads what is stored under a prefix, which ends in "/".
func etcdRange(ctx context.Context, gateway, prefix string) (map[string][]byte, error) {
	end := prefix[:len(prefix)-1] + "0" // the character after "/"
	var answer struct {
		Kvs []struct{ Key, Value []byte }
	}
	if err := upstream.Post(ctx, gateway+"kv/range", map[string][]byte{"key": []byte(prefix), "range_end": []byte(end)}, &answer); err != nil {
		return nil, err
	}
	found := make(map[string][]byte)
	for _, kv := range answer.Kvs {
		found[string(kv.Key)] = kv.Value
	}
	return found, nil
}
