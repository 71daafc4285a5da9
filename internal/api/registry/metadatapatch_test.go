package registry

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"
)

func TestMetadataPatch(t *testing.T) {
	full := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"x": "1", "y": "2"}},
		Data:       map[string]string{"k": "v"},
	}
	bare := &corev1.ConfigMap{TypeMeta: full.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	for name, tc := range map[string]struct {
		patch string
		ok    bool
	}{
		"an annotation":        {`{"metadata":{"annotations":{"x":"9"}}}`, true},
		"a new label":          {`{"metadata":{"labels":{"new":"\u003cb\u003e"}}}`, true},
		"both":                 {`{"metadata":{"labels":{"l":"2"},"annotations":{"z":"3"}}}`, true},
		"removed":              {`{"metadata":{"annotations":{"x":null,"none":null}}}`, true},
		"the last one removed": {`{"metadata":{"labels":{"l":null}}}`, true},
		"nothing":              {`{"metadata":{}}`, true},
		"no keys":              {`{"metadata":{"labels":{}}}`, true},
		"all annotations":      {`{"metadata":{"annotations":null}}`, false},
		"a number":             {`{"metadata":{"annotations":{"x":1}}}`, false},
		"a list":               {`{"metadata":{"annotations":[]}}`, false},
		"a finalizer":          {`{"metadata":{"finalizers":["f"],"annotations":{"x":"9"}}}`, false},
		"data too":             {`{"metadata":{"annotations":{"x":"9"}},"data":{"k":"w"}}`, false},
		"a key twice":          {`{"metadata":{"annotations":{"x":"9","x":"8"}}}`, false},
		"of other case":        {`{"Metadata":{"annotations":{"x":"9"}}}`, false},
		"no object":            {`[]`, false},
		"empty":                {`{}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, current := range []*corev1.ConfigMap{full, bare} {
				before := mustJSON(t, current)
				got, ok := metadataPatch(current, []byte(tc.patch))
				if ok != tc.ok {
					t.Fatalf("metadataPatch = %v, %v; want %v", got, ok, tc.ok)
				}
				if mustJSON(t, current) != before {
					t.Error("the current object was changed")
				}
				if !ok {
					continue
				}
				patched, err := mergePatch([]byte(before), []byte(tc.patch))
				if err != nil {
					t.Fatal(err)
				}
				want := &corev1.ConfigMap{}
				if strict, err := kjson.UnmarshalStrict(patched, want); err != nil || len(strict) > 0 {
					t.Fatal(strict, err)
				}
				if a, b := mustJSON(t, got), mustJSON(t, want); a != b {
					t.Errorf("metadataPatch gives %s, want %s", a, b)
				}
			}
		})
	}
}

func TestFinalizerPatch(t *testing.T) {
	of := func(finalizers ...string) *corev1.Pod {
		return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", Finalizers: finalizers}}
	}
	for name, tc := range map[string]struct {
		patch string
		ok    bool
	}{
		"one":             {`{"metadata":{"$deleteFromPrimitiveList/finalizers":["f"]}}`, true},
		"two":             {`{"metadata":{"$deleteFromPrimitiveList/finalizers":["f","g"]}}`, true},
		"none":            {`{"metadata":{"$deleteFromPrimitiveList/finalizers":[]}}`, true},
		"with a UID":      {`{"metadata":{"uid":"u","$deleteFromPrimitiveList/finalizers":["f"]}}`, true},
		"of another UID":  {`{"metadata":{"$deleteFromPrimitiveList/finalizers":["f"],"uid":"v"}}`, true},
		"a UID alone":     {`{"metadata":{"uid":"u"}}`, false},
		"a UID of null":   {`{"metadata":{"uid":null,"$deleteFromPrimitiveList/finalizers":["f"]}}`, false},
		"a label too":     {`{"metadata":{"labels":{"a":"b"},"$deleteFromPrimitiveList/finalizers":["f"]}}`, false},
		"some are added":  {`{"metadata":{"finalizers":["h"],"$deleteFromPrimitiveList/finalizers":["f"]}}`, false},
		"a number":        {`{"metadata":{"$deleteFromPrimitiveList/finalizers":[1]}}`, false},
		"spec too":        {`{"metadata":{"$deleteFromPrimitiveList/finalizers":["f"]},"spec":{"nodeName":"n"}}`, false},
		"no object":       {`[]`, false},
		"a whole replace": {`{"metadata":{"$patch":"replace","$deleteFromPrimitiveList/finalizers":["f"]}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, current := range []*corev1.Pod{of(), of("f"), of("f", "g"), of("g", "h")} {
				before := mustJSON(t, current)
				got, ok := finalizerPatch(current, []byte(tc.patch))
				if ok != tc.ok {
					t.Fatalf("finalizerPatch = %v, %v; want %v", got, ok, tc.ok)
				}
				if mustJSON(t, current) != before {
					t.Error("the current object was changed")
				}
				if !ok {
					continue
				}
				patched, err := strategicpatch.StrategicMergePatch([]byte(before), []byte(tc.patch), &corev1.Pod{})
				if err != nil {
					t.Fatal(err)
				}
				want := &corev1.Pod{}
				if err := json.Unmarshal(patched, want); err != nil {
					t.Fatal(err)
				}
				if a, b := mustJSON(t, got), mustJSON(t, want); a != b {
					t.Errorf("finalizerPatch gives %s, want %s", a, b)
				}
			}
		})
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
