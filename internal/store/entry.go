package store

import (
	"fmt"
	"sync/atomic"
)

// Entry is one object at one revision. Everything it gives out is shared and read-only.
type Entry struct {
	Key    string // in its table
	Rev    int64  // etcd revision of the last change, the object's resourceVersion; 0 for an answer that is not stored
	Object Object

	codec Codec
	size  int // of the encoded form in etcd, 0 for an answer that is not stored
	json  atomic.Pointer[[]byte]
	proto atomic.Pointer[[]byte]
	views atomic.Pointer[view]
}

// view is an entry as another version of its kind shows it, in a list of few.
type view struct {
	key   any
	entry *Entry
	next  *view
}

// maxViews bounds the views kept of one entry: versions that are read at the same time.
const maxViews = 4

// View returns what AddView kept under key, nil if nothing.
func (e *Entry) View(key any) *Entry {
	for v := e.views.Load(); v != nil; v = v.next {
		if v.key == key {
			return v.entry
		}
	}
	return nil
}

// AddView keeps obj, the entry's object in another version, under key and returns it as an entry,
// which is e itself if the object is.
// Of two callers at once one wins, and both get its entry. obj is taken over.
func (e *Entry) AddView(key any, obj Object, codec Codec) *Entry {
	made := e
	if obj != e.Object {
		made = &Entry{Key: e.Key, Rev: e.Rev, Object: obj, codec: codec}
	}
	for {
		head := e.views.Load()
		kept := 0
		for v := head; v != nil; v = v.next {
			if v.key == key {
				return v.entry
			}
			kept++
		}
		next := &view{key: key, entry: made}
		if kept < maxViews {
			next.next = head
		}
		if e.views.CompareAndSwap(head, next) {
			return made
		}
	}
}

// NewEntry wraps an object that is served but not stored, such as the result of a dry run
// or a subresource of another type.
func NewEntry(obj Object, codec Codec) *Entry {
	return &Entry{Object: obj, codec: codec}
}

// JSON is the object as served in JSON, encoded on first use and kept.
func (e *Entry) JSON() ([]byte, error) { return once(&e.json, e.Object, e.codec.JSON) }

// Proto is the object as a bare protobuf message, encoded on first use and kept. It is nil
// for kinds without a protobuf form.
func (e *Entry) Proto() ([]byte, error) { return once(&e.proto, e.Object, e.codec.Proto) }

// forget drops the encoded bytes of an entry that was superseded. Whoever still needs them, a
// watcher that is behind, encodes it again; history would keep them for nobody.
func (e *Entry) forget() {
	e.json.Store(nil)
	e.proto.Store(nil)
	e.views.Store(nil)
}

// once returns *slot, filling it by encode if it is empty. Two callers may both encode; the
// results are equal and one wins.
func once(slot *atomic.Pointer[[]byte], obj Object, encode func(Object) ([]byte, error)) ([]byte, error) {
	if data := slot.Load(); data != nil {
		return *data, nil
	}
	data, err := encode(obj)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", obj, err)
	}
	slot.Store(&data)
	return data, nil
}

// At is the same content under another revision, as watchers see a deletion.
func (e *Entry) At(rev int64) *Entry {
	obj := e.Object.DeepCopyObject().(Object)
	obj.SetResourceVersion(formatRev(rev))
	return &Entry{Key: e.Key, Rev: rev, Object: obj, codec: e.codec, size: e.size}
}
