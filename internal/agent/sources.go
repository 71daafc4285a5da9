package agent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func (a *Agent) configMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	object := &corev1.ConfigMap{}
	if err := a.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

func (a *Agent) secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	object := &corev1.Secret{}
	if err := a.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

// services lists those that a pod gets variables for: its namespace's, and the API's own.
func (a *Agent) services(ctx context.Context, pod *corev1.Pod) ([]corev1.Service, error) {
	var list corev1.ServiceList
	if pod.Spec.EnableServiceLinks != nil && *pod.Spec.EnableServiceLinks {
		if err := a.client.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
			return nil, fmt.Errorf("listing services for the environment: %w", err)
		}
	}
	var api corev1.Service
	err := a.client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "kubernetes"}, &api)
	if isGone(err) != nil {
		return nil, fmt.Errorf("reading the API's service for the environment: %w", err)
	}
	if err == nil && (pod.Namespace != api.Namespace || len(list.Items) == 0) {
		list.Items = append(list.Items[:len(list.Items):len(list.Items)], api)
	}
	return list.Items, nil
}

// handlerGantry names the runtime handler that pods have without a RuntimeClass.
const handlerGantry = "gantry"

// runtimeHandler is the runtime's word for a pod's RuntimeClass. A class cannot change, and one
// that was deleted matters to new pods only: what was found once stays.
func (w *worker) runtimeHandler(ctx context.Context, pod *corev1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	if w.handler != nil {
		return *w.handler, nil
	}
	var class nodev1.RuntimeClass
	if err := w.agent.client.Get(ctx, client.ObjectKey{Name: *name}, &class); err != nil {
		return "", fmt.Errorf("failed to get sandbox runtime: %w", err)
	}
	handler := class.Handler
	if handler == handlerGantry {
		handler = ""
	}
	w.handler = &handler
	return handler, nil
}

// refersTo reports whether a pod's volumes or environment name a ConfigMap or Secret.
func refersTo(pod *corev1.Pod, name string, secret bool) bool {
	for i := range pod.Spec.Volumes {
		if volumeRefersTo(&pod.Spec.Volumes[i], name, secret) {
			return true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if envRefersTo(&list[i], name, secret) {
				return true
			}
		}
	}
	if secret {
		for _, s := range pod.Spec.ImagePullSecrets {
			if s.Name == name {
				return true
			}
		}
	}
	return false
}

func volumeRefersTo(v *corev1.Volume, name string, secret bool) bool {
	switch {
	case v.ConfigMap != nil:
		return !secret && v.ConfigMap.Name == name
	case v.Secret != nil:
		return secret && v.Secret.SecretName == name
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil && !secret && s.ConfigMap.Name == name || s.Secret != nil && secret && s.Secret.Name == name {
				return true
			}
		}
	}
	return false
}

func envRefersTo(c *corev1.Container, name string, secret bool) bool {
	for _, from := range c.EnvFrom {
		if from.ConfigMapRef != nil && !secret && from.ConfigMapRef.Name == name ||
			from.SecretRef != nil && secret && from.SecretRef.Name == name {
			return true
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil && !secret && r.Name == name {
			return true
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil && secret && r.Name == name {
			return true
		}
	}
	return false
}
