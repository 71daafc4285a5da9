package registry

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

func TestPlainJSON(t *testing.T) {
	for name, tc := range map[string]struct {
		document string
		ok       bool
	}{
		"what a client writes":  {`{"kind":"ConfigMap","data":{"a":"x\ny \u003c\"\\"},"n":[1,-20,true,false,null,{},[]]}` + "\n", true},
		"a key twice":           {`{"a":1,"a":2}`, false},
		"a float":               {`{"a":1.5}`, false},
		"a large number":        {`{"a":12345678901234567}`, false},
		"a number from zero":    {`{"a":007}`, false},
		"minus zero":            {`{"a":-0}`, false},
		"not ASCII":             {`{"a":"é"}`, false},
		"a surrogate":           {`{"a":"\ud83d\ude00"}`, false},
		"a cut escape":          {`{"a":"\u00`, false},
		"a control character":   {"{\"a\":\"\x01\"}", false},
		"white space":           {`{"a": 1}`, false},
		"a merge key":           {`{"<<":{"a":1}}`, false},
		"a long key":            {`{"` + strings.Repeat("k", 2000) + `":1}`, false},
		"a long key, escaped":   {`{"\n` + strings.Repeat("k", 2000) + `":1}`, false},
		"more than a document":  {`{"a":1}{"b":2}`, false},
		"YAML":                  {"a: 1\n", false},
		"no document":           {"\n", false},
		"cut":                   {`{"a":{"b":`, false},
		"a comma too many":      {`{"a":1,}`, false},
		"deeper than is usual":  {strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), false},
		"a comment in a string": {`{"a":"# & * ! | > % @ x: y - z"}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := plainJSON([]byte(tc.document)); ok != tc.ok {
				t.Errorf("plainJSON = %v, %v; want %v", got, ok, tc.ok)
			}
			asYAML(t, []byte(tc.document))
		})
	}
}

// asYAML fails if plainJSON reads a document otherwise than YAML's reader.
func asYAML(t *testing.T, document []byte) {
	t.Helper()
	got, ok := plainJSON(document)
	if !ok {
		return
	}
	want := map[string]any{}
	data, err := yaml.YAMLToJSON(document)
	if err == nil {
		err = utiljson.Unmarshal(data, &want)
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("plainJSON(%q) = %#v; YAML has %#v, %v", document, got, want, err)
	}
	if err := yaml.UnmarshalStrict(document, &map[string]any{}); err != nil {
		t.Errorf("plainJSON(%q) is taken, but strict YAML says %v", document, err)
	}
}

func FuzzPlainJSON(f *testing.F) {
	for _, seed := range []string{
		`{"kind":"ConfigMap","data":{"a":"x\ny \u003c\"\\"},"n":[1,-20,true,false,null,{},[]]}` + "\n",
		`{"":"","?":"? a","-":"- b","~":[[]],"=":"=","y":"no","0x1":"1e3","\t":"\r"}`, `{"a":[{"b":{}},[1,2,"%TAG"]]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) { asYAML(t, document) })
}

// TestPlainJSONOfRandomDocuments has strings of every character that may mean something in YAML.
func TestPlainJSONOfRandomDocuments(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	text := func() string {
		b := make([]byte, random.IntN(6))
		for i := range b {
			b[i] = byte(9 + random.IntN(119))
		}
		return string(b)
	}
	var value func(depth int) any
	value = func(depth int) any {
		switch n := random.IntN(9); {
		case n < 2 && depth < 4:
			object := map[string]any{}
			for range random.IntN(4) {
				object[text()] = value(depth + 1)
			}
			return object
		case n == 2 && depth < 4:
			list := []any{}
			for range random.IntN(4) {
				list = append(list, value(depth+1))
			}
			return list
		case n == 3:
			return random.Int64N(1<<50) - 1<<49
		case n == 4:
			return [...]any{true, false, nil, 0}[random.IntN(4)]
		}
		return text()
	}
	taken := 0
	for range 20_000 {
		document, err := json.Marshal(map[string]any{text(): value(0), text(): value(0)})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := plainJSON(document); ok {
			taken++
		}
		asYAML(t, document)
	}
	if taken < 2000 {
		t.Errorf("%d documents were taken: the test shows little", taken)
	}
}
