package registry

import (
	"reflect"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// truncateTimes cuts the times of an object to whole seconds, which is all that is stored and served of them: an object
// that comes by HTTP has no more, and who reads it after a restart sees no more.
func truncateTimes(obj any) {
	v := reflect.ValueOf(obj)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return
	}
	if cut := cutterOf(v.Type().Elem()); cut != nil {
		cut(v.Elem())
	}
}

// cutter cuts the times of a value that can be set and says whether it changed any. What has been stored before has
// nothing left to cut, so memory that versions of an object share is only read.
type cutter func(reflect.Value) bool

// cutters are made once a type.
//
//nolint:gochecknoglobals // a cache of what the types themselves say
var cutters struct {
	sync.RWMutex
	byType map[reflect.Type]cutter
}

func cutterOf(t reflect.Type) cutter {
	cutters.RLock()
	cut, known := cutters.byType[t]
	cutters.RUnlock()
	if known {
		return cut
	}
	cutters.Lock()
	defer cutters.Unlock()
	if cutters.byType == nil {
		cutters.byType = map[reflect.Type]cutter{}
	}
	return cutterLocked(t)
}

func cutterLocked(t reflect.Type) cutter {
	if cut, known := cutters.byType[t]; known {
		return cut
	}
	cutters.byType[t] = nil // of a type that holds itself
	cut := newCutter(t)
	cutters.byType[t] = cut
	return cut
}

// newCutter is nil for types that hold no times.
func newCutter(t reflect.Type) cutter {
	if t == reflect.TypeFor[metav1.Time]() {
		return cutTime
	}
	switch t.Kind() {
	case reflect.Struct:
		return structCutter(t)
	case reflect.Pointer:
		if cut := cutterLocked(t.Elem()); cut != nil {
			return func(v reflect.Value) bool { return !v.IsNil() && cut(v.Elem()) }
		}
	case reflect.Slice, reflect.Array:
		if cut := cutterLocked(t.Elem()); cut != nil {
			return func(v reflect.Value) bool {
				changed := false
				for i := range v.Len() {
					changed = cut(v.Index(i)) || changed
				}
				return changed
			}
		}
	case reflect.Map:
		if cut := cutterLocked(t.Elem()); cut != nil {
			return func(v reflect.Value) bool { return cutMap(v, cut) }
		}
	}
	return nil
}

func cutTime(v reflect.Value) bool {
	at, ok := v.Addr().Interface().(*metav1.Time)
	if !ok || at.Nanosecond() == 0 {
		return false
	}
	at.Time = at.Truncate(time.Second)
	return true
}

func structCutter(t reflect.Type) cutter {
	type field struct {
		index int
		cut   cutter
	}
	var fields []field
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			if cut := cutterLocked(f.Type); cut != nil {
				fields = append(fields, field{i, cut})
			}
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return func(v reflect.Value) bool {
		changed := false
		for _, f := range fields {
			changed = f.cut(v.Field(f.index)) || changed
		}
		return changed
	}
}

// cutMap cuts copies of a map's values, which cannot be set where they are.
func cutMap(v reflect.Value, cut cutter) bool {
	changed := false
	for _, key := range v.MapKeys() {
		value := reflect.New(v.Type().Elem()).Elem()
		value.Set(v.MapIndex(key))
		if cut(value) {
			v.SetMapIndex(key, value)
			changed = true
		}
	}
	return changed
}
