package managedfields

import (
	"bytes"
	"reflect"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// same reports whether two values of a leaf are the same to upstream: as JSON, except that
// lists are the same only if Go's DeepEqual says so. Both are there; they may be nil.
func (n *node) same(l, r reflect.Value) bool {
	if l.Kind() == reflect.Pointer {
		if l.UnsafePointer() == r.UnsafePointer() {
			return true
		}
		if l.IsNil() || r.IsNil() {
			return sameSlowly(l, r)
		}
		l, r = l.Elem(), r.Elem()
	}
	switch n.shape {
	case leafString:
		return l.String() == r.String()
	case leafInt:
		return l.Int() == r.Int()
	case leafBool:
		return l.Bool() == r.Bool()
	case leafBytes:
		return l.IsNil() == r.IsNil() && bytes.Equal(l.Bytes(), r.Bytes())
	case leafTime:
		a, b := pointer(l).(*metav1.Time), pointer(r).(*metav1.Time)
		return a.IsZero() == b.IsZero() && a.Unix() == b.Unix()
	case leafMicroTime:
		a, b := pointer(l).(*metav1.MicroTime), pointer(r).(*metav1.MicroTime)
		return a.IsZero() == b.IsZero() && a.UnixMicro() == b.UnixMicro()
	case leafQuantity:
		return sameQuantity(*pointer(l).(*resource.Quantity), *pointer(r).(*resource.Quantity))
	case leafIntOrString:
		a, b := pointer(l).(*intstr.IntOrString), pointer(r).(*intstr.IntOrString)
		return *a == *b || sameSlowly(l, r)
	}
	return alike(l, r) || sameSlowly(l, r)
}

// sameQuantity takes copies: String writes into its receiver.
func sameQuantity(a, b resource.Quantity) bool { return a == b || a.String() == b.String() }

// alike is true only for values that are the same in every way.
func alike(l, r reflect.Value) bool {
	switch l.Kind() {
	case reflect.Slice, reflect.Map:
		if l.IsNil() != r.IsNil() || l.Len() != r.Len() {
			return false
		}
		if l.UnsafePointer() == r.UnsafePointer() {
			return true
		}
	}
	return reflect.DeepEqual(pointer(l), pointer(r))
}

// sameSlowly asks structured-merge-diff.
func sameSlowly(l, r reflect.Value) bool {
	left, err := generic(l)
	if err != nil {
		return false
	}
	right, err := generic(r)
	return err == nil && value.Equals(left, right)
}

func generic(v reflect.Value) (value.Value, error) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return value.NewValueInterface(nil), nil
		}
		v = v.Elem()
	}
	return value.NewValueReflect(pointer(v))
}

// pointer is a pointer to v, or to a copy where v is in a map.
func pointer(v reflect.Value) any {
	if v.CanAddr() {
		return v.Addr().Interface()
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Interface()
}
