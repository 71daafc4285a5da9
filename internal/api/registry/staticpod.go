package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/helper"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/util/hash"
)

// The annotations of static pods and of their mirrors in the API, with the kubelet's names.
const (
	AnnotationConfigHash   = "kubernetes.io/config.hash"
	AnnotationConfigSource = "kubernetes.io/config.source"
	AnnotationConfigMirror = corev1.MirrorPodAnnotationKey
)

// DecodeStaticPod makes the static pod of a node from a manifest in YAML or JSON: with defaults
// and checked as the API would, named after the node, and with a UID that says what is in the
// manifest. file is where the manifest is.
func DecodeStaticPod(data []byte, file, nodeName string) (*corev1.Pod, error) {
	text, err := yaml.ToJSON(data)
	if err != nil {
		return nil, err
	}
	obj, err := runtime.Decode(legacyscheme.Codecs.UniversalDecoder(), text)
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*core.Pod)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, want a Pod", obj)
	}
	if pod.Name == "" {
		return nil, errors.New("invalid pod: name is needed for the pod")
	}
	makeStatic(pod, file, nodeName)
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&pod.Spec, nil, &pod.ObjectMeta, nil)
	if errs := validation.ValidatePodCreate(pod, options); len(errs) > 0 {
		return nil, fmt.Errorf("invalid pod: %w", errs.ToAggregate())
	}
	_, refers, err := podutil.HasAPIObjectReference(pod)
	if err != nil {
		return nil, err
	}
	if refers != "" {
		return nil, fmt.Errorf("static pods may not reference %s", refers)
	}
	out := &corev1.Pod{}
	if err := legacyscheme.Scheme.Convert(pod, out, nil); err != nil {
		return nil, fmt.Errorf("converting the pod: %w", err)
	}
	return out, nil
}

// makeStatic gives a pod what makes it a static one of the node, as the kubelet does.
func makeStatic(pod *core.Pod, file, nodeName string) {
	if pod.UID == "" {
		hasher := fnv.New128a()
		hash.DeepHashObject(hasher, pod)
		_, _ = fmt.Fprintf(hasher, "host:%s", nodeName)
		_, _ = fmt.Fprintf(hasher, "file:%s", file)
		pod.UID = types.UID(hex.EncodeToString(hasher.Sum(nil)))
	}
	pod.Name += "-" + strings.ToLower(nodeName)
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	pod.Spec.NodeName = nodeName
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[AnnotationConfigHash] = string(pod.UID)
	pod.Annotations[AnnotationConfigSource] = "file"
	helper.AddOrUpdateTolerationInPod(pod, &core.Toleration{Operator: core.TolerationOpExists, Effect: core.TaintEffectNoExecute})
	pod.Status.Phase = core.PodPending
}
