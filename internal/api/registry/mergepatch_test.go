package registry

import (
	"encoding/json"
	"reflect"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// sameAsLibrary compares mergePatch with the library that upstream uses.
func sameAsLibrary(t *testing.T, doc, patch string) {
	t.Helper()
	got, gotErr := mergePatch([]byte(doc), []byte(patch))
	want, wantErr := jsonpatch.MergePatch([]byte(doc), []byte(patch))
	if (gotErr == nil) != (wantErr == nil) {
		t.Fatalf("mergePatch(%s, %s) fails with %v, the library with %v", doc, patch, gotErr, wantErr)
	}
	if wantErr != nil {
		return
	}
	var left, right any
	if err := json.Unmarshal(got, &left); err != nil {
		t.Fatalf("mergePatch(%s, %s) = %s: %v", doc, patch, got, err)
	}
	if err := json.Unmarshal(want, &right); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(left, right) {
		t.Errorf("mergePatch(%s, %s) = %s, the library gives %s", doc, patch, got, want)
	}
}

var mergeCases = [][2]string{
	{`{"a":1,"b":{"c":2,"d":[1,null]}}`, `{"a":null,"b":{"c":3,"e":{"f":null,"g":1}}}`},
	{`{"a":null}`, `{"a":{"b":null,"c":[null,{"d":null}]}}`},
	{`{"a":[1]}`, `{"a":{"b":null}}`},
	{`{"a":{"b":1}}`, `{"a":[null,1]}`},
	{`{"a":{"b":1}}`, ` { "a" : "null" } `},
	{`{"\u0061":1}`, `{"a":2,"a":3}`},
	{`{"a":1}`, `{}`},
	{`{"a":1}`, `[]`},
	{`{"a":1}`, `null`},
	{`{"a":1}`, `{"a":`},
	{`{"a":1}`, ``},
	{`{"<&>":1}`, `{"b":"<&>\u2028"}`},
}

func TestMergePatchIsTheLibrarys(t *testing.T) {
	for _, tc := range mergeCases {
		sameAsLibrary(t, tc[0], tc[1])
	}
}

func FuzzMergePatch(f *testing.F) {
	for _, tc := range mergeCases {
		f.Add(tc[0], tc[1])
	}
	f.Fuzz(func(t *testing.T, doc, patch string) {
		if _, ok := members([]byte(doc)); ok { // the registry's documents are objects
			sameAsLibrary(t, doc, patch)
		}
	})
}
