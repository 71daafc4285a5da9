package api

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func FuzzCombineCRC(f *testing.F) {
	f.Add([]byte("hello "), []byte("world"))
	f.Add([]byte(nil), []byte("x"))
	f.Add(bytes.Repeat([]byte("a"), 70000), bytes.Repeat([]byte{0}, 70001))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		want := crc32.ChecksumIEEE(append(bytes.Clone(a), b...))
		if got := combineCRC(crc32.ChecksumIEEE(a), crc32.ChecksumIEEE(b), len(b)); got != want {
			t.Errorf("combineCRC = %08x, want %08x", got, want)
		}
	})
}

// What a client unpacks must be what it would get plain, also after objects changed, came and went.
func TestZippedListIsThePlainList(t *testing.T) {
	c := start(t, Options{})
	maps := c.registry.Resource(corev1.SchemeGroupVersion.WithResource("configmaps"))
	for i := range 700 {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}, Data: map[string]string{"k": strings.Repeat("v", 200)}})
	}
	compare := func(when string) {
		for name, accept := range contentTypes {
			const path = "/api/v1/namespaces/default/configmaps"
			plain := c.do(t, "root", "GET", path, nil, "Accept", accept)
			zipped := c.do(t, "root", "GET", path, nil, "Accept", accept, "Accept-Encoding", "gzip")
			if zipped.Header().Get("Content-Encoding") != "gzip" || zipped.Header().Get("Content-Type") != accept {
				t.Fatalf("%s, %s: headers are %v", when, name, zipped.Header())
			}
			reader, err := gzip.NewReader(zipped.Body)
			if err != nil {
				t.Fatal(err)
			}
			reader.Multistream(false)
			got, err := io.ReadAll(reader)
			if err != nil || !bytes.Equal(got, plain.Body.Bytes()) || zipped.Body.Len() != 0 {
				t.Errorf("%s, %s: %v; %d bytes unpacked, %d plain, %d left over", when, name, err, len(got), plain.Body.Len(), zipped.Body.Len())
			}
		}
	}
	compare("at first")
	entry, err := maps.Get(t.Context(), "default", "c300", "")
	if err != nil {
		t.Fatal(err)
	}
	changed := entry.Object.DeepCopyObject().(*corev1.ConfigMap)
	changed.Data["k"] = "other"
	if _, _, err := maps.Update(t.Context(), "default", "c300", "", changed, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kept := len(c.zips.runs)
	compare("after an update")
	if len(c.zips.runs) > kept+4 {
		t.Errorf("one change made %d new runs", len(c.zips.runs)-kept)
	}
	if _, err := maps.Delete(t.Context(), "default", "c0", &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	compare("after a delete")
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a-first"}})
	compare("after a create")
}
