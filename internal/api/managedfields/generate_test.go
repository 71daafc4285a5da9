package managedfields

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// generator makes and changes objects at random. Words are few, so that keys of lists meet.
type generator struct{ *rand.Rand }

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g generator) word() string {
	return [...]string{"", "a", "b", "c", "TCP", "UDP", "web", "10.0.0.1", "x.y/z", `quo"te`, "é<&>", "app"}[g.IntN(12)]
}

// special fills types that have a JSON form of their own.
func (g generator) special(v reflect.Value) bool {
	switch p := v.Addr().Interface().(type) {
	case *metav1.Time:
		*p = metav1.Time{}
		if g.chance(80) {
			*p = metav1.Unix(int64(1e9+g.IntN(3)), int64(g.IntN(2)))
			if g.chance(30) {
				p.Time = p.UTC()
			}
		}
	case *metav1.MicroTime:
		*p = metav1.MicroTime{}
		if g.chance(80) {
			*p = metav1.NewMicroTime(time.Unix(1e9, int64(g.IntN(3)*500)))
		}
	case *metav1.Duration:
		*p = metav1.Duration{Duration: time.Duration(g.IntN(3)) * time.Second}
	case *resource.Quantity:
		*p = resource.MustParse([...]string{"0", "1", "1000m", "2Gi", "2048Mi", "1.5"}[g.IntN(6)])
		if g.chance(30) {
			_ = p.String()
		}
	case *intstr.IntOrString:
		*p = intstr.FromInt32(int32(g.IntN(3)))
		if g.chance(50) {
			*p = intstr.FromString([...]string{"0", "1", "25%"}[g.IntN(3)])
		}
	case *runtime.RawExtension:
		p.Raw = []byte([...]string{`{}`, `{"a":1}`, `{"a":{"b":[1,null]}}`, `[1]`, `"s"`}[g.IntN(5)])
		if g.chance(10) {
			p.Raw = nil
		}
	case *metav1.FieldsV1:
		p.SetRawString(`{"f:a":{}}`)
	default:
		return false
	}
	return true
}

// fill sets v at random. Fewer things are set the deeper it gets.
func (g generator) fill(v reflect.Value, depth int) {
	if g.special(v) {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(g.word())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(g.IntN(3)))
	case reflect.Bool:
		v.SetBool(g.chance(50))
	case reflect.Pointer:
		v.SetZero()
		if g.chance(60) {
			v.Set(reflect.New(v.Type().Elem()))
			g.fill(v.Elem(), depth+1)
		}
	case reflect.Slice:
		v.SetZero()
		if g.chance(70) {
			v.Set(reflect.MakeSlice(v.Type(), g.IntN(4), 8))
			for i := range v.Len() {
				g.fill(v.Index(i), depth+1)
			}
		}
	case reflect.Map:
		v.SetZero()
		if g.chance(70) {
			v.Set(reflect.MakeMap(v.Type()))
			for range g.IntN(4) {
				g.put(v, depth)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if g.chance(max(12, 60-8*depth)) && v.Type().Field(i).Name != "TypeMeta" {
				g.fill(v.Field(i), depth+1)
			}
		}
	}
}

func (g generator) put(m reflect.Value, depth int) {
	key, value := reflect.New(m.Type().Key()).Elem(), reflect.New(m.Type().Elem()).Elem()
	key.SetString("k" + g.word())
	g.fill(value, depth+1)
	m.SetMapIndex(key, value)
}

// change alters about one in share of the leaves of v.
func (g generator) change(v reflect.Value, share, depth int) {
	if g.IntN(share*(3+depth)) == 0 {
		g.fill(v, depth)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if !g.isSpecial(v.Type()) {
			for i := range v.NumField() {
				if v.Type().Field(i).Name != "TypeMeta" {
					g.change(v.Field(i), share, depth+1)
				}
			}
		}
	case reflect.Pointer:
		if !v.IsNil() {
			g.change(v.Elem(), share, depth+1)
		}
	case reflect.Slice:
		g.changeList(v, share, depth)
	case reflect.Map:
		if !v.IsNil() && g.IntN(share) == 0 {
			g.put(v, depth)
		}
		for _, key := range v.MapKeys() {
			if g.IntN(share*3) == 0 {
				v.SetMapIndex(key, reflect.Value{})
			}
		}
	}
}

func (g generator) isSpecial(typ reflect.Type) bool { return converts(typ) }

func (g generator) changeList(v reflect.Value, share, depth int) {
	for i := range v.Len() {
		g.change(v.Index(i), share, depth+1)
	}
	if v.Len() == 0 || g.IntN(share) > 0 {
		return
	}
	i, j := g.IntN(v.Len()), g.IntN(v.Len())
	switch g.IntN(5) {
	case 0: // an item twice
		v.Set(reflect.Append(v, v.Index(i)))
	case 1:
		v.Set(reflect.AppendSlice(v.Slice(0, i), v.Slice(i+1, v.Len())))
	case 2:
		reflect.Swapper(v.Interface())(i, j)
	case 3:
		item := reflect.New(v.Type().Elem()).Elem()
		g.fill(item, depth+1)
		v.Set(reflect.Append(v, item))
	case 4: // many items, with some names more than once
		for n := range 30 {
			item := reflect.New(v.Type().Elem()).Elem()
			g.fill(item, depth+3)
			if item.Kind() == reflect.Struct {
				if name := item.FieldByName("Name"); name.IsValid() && name.Kind() == reflect.String {
					name.SetString(fmt.Sprintf("n%d", n*2/3))
				}
			}
			v.Set(reflect.Append(v, item))
		}
	}
}

// document is obj as a client may apply it: some of its fields.
func (g generator) document(obj Object) map[string]any {
	doc, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		panic(err)
	}
	meta := map[string]any{"name": "a"}
	if all, ok := doc["metadata"].(map[string]any); ok {
		for _, name := range []string{"labels", "annotations", "finalizers"} {
			if all[name] != nil {
				meta[name] = all[name]
			}
		}
	}
	doc["metadata"] = meta
	for name := range doc {
		if !strings.Contains("apiVersion kind metadata", name) && g.chance(40) {
			delete(doc, name)
		}
	}
	return doc
}
