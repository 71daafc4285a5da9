package registry

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/store"
)

// metadataPatch applies a merge patch that sets and removes labels and annotations, and nothing else, which is the
// most usual one. It does so without decoding the object anew. ok is false for other patches.
func metadataPatch(current store.Object, patch []byte) (next store.Object, ok bool) {
	metadata, ok := onlyMetadata(patch)
	if !ok {
		return nil, false
	}
	labels, ok := mergeTexts(current.GetLabels(), metadata, "labels")
	if !ok {
		return nil, false
	}
	annotations, ok := mergeTexts(current.GetAnnotations(), metadata, "annotations")
	if !ok || len(metadata) > 0 {
		return nil, false
	}
	if next, ok = current.DeepCopyObject().(store.Object); ok {
		next.SetLabels(labels)
		next.SetAnnotations(annotations)
	}
	return next, ok
}

// onlyMetadata is the metadata of a patch that has nothing else; ok is false for other patches.
func onlyMetadata(patch []byte) (metadata map[string]any, ok bool) {
	document, ok := plainJSON(patch)
	if !ok || len(document) != 1 {
		return nil, false
	}
	metadata, ok = document["metadata"].(map[string]any)
	return metadata, ok
}

// mergeTexts takes the named field out of a patch and gives what it makes of texts, as a map of its own.
func mergeTexts(texts map[string]string, patch map[string]any, field string) (merged map[string]string, ok bool) {
	merged = maps.Clone(texts)
	value, there := patch[field]
	if !there {
		return merged, true
	}
	delete(patch, field)
	changes, ok := value.(map[string]any)
	if !ok {
		return nil, false
	}
	if merged == nil {
		merged = make(map[string]string, len(changes))
	}
	for key, value := range changes {
		switch v := value.(type) {
		case nil:
			delete(merged, key)
		case string:
			merged[key] = v
		default:
			return nil, false
		}
	}
	return merged, true
}

// finalizerPatch applies a strategic merge patch that removes finalizers, and nothing else, from an object that is
// named by its UID maybe: each pod of a job gets one. It does so without decoding the object anew. ok is false for
// other patches.
func finalizerPatch(current store.Object, patch []byte) (next store.Object, ok bool) {
	const directive = "$deleteFromPrimitiveList/finalizers"
	metadata, ok := onlyMetadata(patch)
	if !ok {
		return nil, false
	}
	uid, hasUID := metadata["uid"].(string)
	remove, ok := metadata[directive].([]any)
	if !ok || (hasUID && len(metadata) != 2) || (!hasUID && len(metadata) != 1) {
		return nil, false
	}
	left := slices.Clone(current.GetFinalizers())
	for _, value := range remove {
		name, ok := value.(string)
		if !ok {
			return nil, false
		}
		left = slices.DeleteFunc(left, func(f string) bool { return f == name })
	}
	if next, ok = current.DeepCopyObject().(store.Object); !ok {
		return nil, false
	}
	if hasUID {
		next.SetUID(types.UID(uid)) // another one's is refused with the update
	}
	if len(left) == 0 {
		left = nil
	}
	next.SetFinalizers(left)
	return next, true
}
