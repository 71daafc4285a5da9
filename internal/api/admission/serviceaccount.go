package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage/names"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	upstream "k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// defaultAccountWait is how long a pod waits for the default account of a new namespace.
const defaultAccountWait = 1500 * time.Millisecond

// serviceAccount gives a pod its account and the volume with the account's token (upstream:
// ServiceAccount).
type serviceAccount struct{ reader Reader }

// newPod returns the pod of a create, nil for anything else.
func newPod(a admission.Attributes) *api.Pod {
	if a.GetOperation() != admission.Create || a.GetSubresource() != "" || a.GetResource().GroupResource() != api.Resource("pods") {
		return nil
	}
	pod, _ := a.GetObject().(*api.Pod)
	return pod
}

func isMirror(pod *api.Pod) bool {
	_, ok := pod.Annotations[api.MirrorPodAnnotationKey]
	return ok
}

// Admit implements Plugin.
func (p serviceAccount) Admit(ctx context.Context, a admission.Attributes) error {
	pod := newPod(a)
	if pod == nil || isMirror(pod) {
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = upstream.DefaultServiceAccountName
	}
	account, err := p.account(ctx, a.GetNamespace(), pod.Spec.ServiceAccountName)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if automounts(account, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		for _, ref := range account.ImagePullSecrets {
			pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, api.LocalObjectReference{Name: ref.Name})
		}
	}
	return nil
}

// Validate implements Plugin.
func (p serviceAccount) Validate(ctx context.Context, a admission.Attributes) error {
	pod := newPod(a)
	if pod == nil {
		return nil
	}
	if isMirror(pod) {
		return validateMirror(a, pod)
	}
	if pod.Spec.ServiceAccountName == "" {
		return admission.NewForbidden(a, fmt.Errorf("no service account specified for pod %s/%s", a.GetNamespace(), pod.Name))
	}
	if _, err := p.account(ctx, a.GetNamespace(), pod.Spec.ServiceAccountName); err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	return nil
}

func validateMirror(a admission.Attributes, pod *api.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return admission.NewForbidden(a, errors.New("a mirror pod may not reference service accounts"))
	}
	free := podutil.VisitPodSecretNames(pod, func(string) bool { return false }, podutil.AllContainers)
	if !free {
		return admission.NewForbidden(a, errors.New("a mirror pod may not reference secrets"))
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.ServiceAccountToken != nil {
				return admission.NewForbidden(a, errors.New("a mirror pod may not use ServiceAccountToken volume projections"))
			}
		}
	}
	return nil
}

// account reads the account. The default one is made by a controller soon after its
// namespace, so it is waited for.
func (p serviceAccount) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	deadline := time.Now().Add(defaultAccountWait)
	for {
		account := new(corev1.ServiceAccount)
		err := p.reader.Get(ctx, ctrlclient.ObjectKey{Namespace: namespace, Name: name}, account)
		switch {
		case err == nil:
			return account, nil
		case !apierrors.IsNotFound(err):
			return nil, err
		case name != upstream.DefaultServiceAccountName || time.Now().After(deadline):
			return nil, apierrors.NewNotFound(api.Resource("serviceaccount"), name)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func automounts(account *corev1.ServiceAccount, pod *api.Pod) bool {
	switch {
	case pod.Spec.AutomountServiceAccountToken != nil:
		return *pod.Spec.AutomountServiceAccountToken
	case account.AutomountServiceAccountToken != nil:
		return *account.AutomountServiceAccountToken
	}
	return true
}

// mountToken mounts the token where containers expect it, unless they mount something else
// there.
func mountToken(pod *api.Pod) {
	prefix := upstream.ServiceAccountVolumeName + "-"
	at := slices.IndexFunc(pod.Spec.Volumes, func(v api.Volume) bool { return strings.HasPrefix(v.Name, prefix) })
	name := ""
	if at >= 0 {
		name = pod.Spec.Volumes[at].Name
	} else {
		name = names.SimpleNameGenerator.GenerateName(prefix)
	}
	mount := api.VolumeMount{Name: name, ReadOnly: true, MountPath: upstream.DefaultAPITokenMountPath}
	needed := false
	for _, containers := range [][]api.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			taken := slices.ContainsFunc(containers[i].VolumeMounts, func(m api.VolumeMount) bool { return m.MountPath == mount.MountPath })
			if !taken {
				containers[i].VolumeMounts = append(containers[i].VolumeMounts, mount)
				needed = true
			}
		}
	}
	if needed && at < 0 {
		pod.Spec.Volumes = append(pod.Spec.Volumes, api.Volume{
			Name: name, VolumeSource: api.VolumeSource{Projected: upstream.TokenVolumeSource()},
		})
	}
}
