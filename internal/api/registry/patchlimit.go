package registry

import (
	"fmt"
	"sync/atomic"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// maxCopied is how many bytes the copies of one JSON patch may make (kube-apiserver's limit): each can double the object.
const maxCopied = 3 << 20

// limitCopies sets the library's limit, which is one for the whole process, unless it is set.
func limitCopies() {
	if atomic.LoadInt64(&jsonpatch.AccumulatedCopySizeLimit) == 0 {
		atomic.CompareAndSwapInt64(&jsonpatch.AccumulatedCopySizeLimit, 0, maxCopied)
	}
}

// applyJSONPatch applies a patch whose operations the library may not expect: it panics where one that tests the whole
// document names no value, for one.
func applyJSONPatch(patch jsonpatch.Patch, doc []byte) (patched []byte, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			patched, err = nil, fmt.Errorf("the patch cannot be applied: %v", cause)
		}
	}()
	return patch.Apply(doc)
}
