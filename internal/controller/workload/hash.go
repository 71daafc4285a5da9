package workload

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
)

// TemplateHash is the value of the pod-template-hash label: the same as Kubernetes
// computes, so that ReplicaSets made by either are recognised by the other. A collision
// count, counted up when two templates share a hash, leads to another value.
func TemplateHash(template *corev1.PodTemplateSpec, collisionCount *int32) string {
	sum := fnv.New32a()
	_, _ = fmt.Fprintf(sum, "%v", dump.ForHash(*template))
	if collisionCount != nil {
		// Kubernetes hashes eight bytes of which four are the count.
		count := make([]byte, 8)
		binary.LittleEndian.PutUint32(count, uint32(*collisionCount))
		_, _ = sum.Write(count)
	}
	return rand.SafeEncodeString(fmt.Sprint(sum.Sum32()))
}
