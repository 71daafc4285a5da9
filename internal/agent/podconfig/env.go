package podconfig

import (
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Node is what a pod's environment may say of its node.
type Node struct {
	IPs         []string
	Allocatable corev1.ResourceList
}

// EnvInput is what a container's environment is made from.
type EnvInput struct {
	Pod       *corev1.Pod
	Container *corev1.Container
	PodIPs    []string
	Node      Node
	Services  []corev1.Service // of the pod's namespace, and default/kubernetes
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	File      func(volume, path string) (io.ReadCloser, error) // a file of one of the pod's volumes
}

// Environment makes the NAME=value list of a container: service variables, then envFrom, then
// env; a later entry replaces an earlier one. An error is what the container waits for, with
// the reason CreateContainerConfigError.
func Environment(in EnvInput) ([]string, error) {
	if in.Pod.Spec.EnableServiceLinks == nil {
		return nil, fmt.Errorf("nil pod.spec.enableServiceLinks encountered, cannot construct envvars")
	}
	service := map[string]string{}
	var order []string
	for _, v := range serviceVariables(linked(in)) {
		if _, ok := service[v.Name]; !ok {
			order = append(order, v.Name)
		}
		service[v.Name] = v.Value
	}
	set := map[string]string{}
	var own []string
	put := func(name, value string) {
		if _, ok := set[name]; !ok {
			own = append(own, name)
		}
		set[name] = value
	}
	for _, from := range in.Container.EnvFrom {
		data, err := in.envFrom(from)
		if err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			put(from.Prefix+key, data[key])
		}
	}
	lookup := func(name string) (string, bool) {
		if value, ok := set[name]; ok {
			return value, true
		}
		value, ok := service[name]
		return value, ok
	}
	for i := range in.Container.Env {
		v := &in.Container.Env[i]
		value, skip, err := in.value(v, lookup)
		if err != nil {
			return nil, err
		}
		if !skip {
			put(v.Name, value)
		}
	}
	var env []string
	for _, name := range order {
		if _, ok := set[name]; !ok {
			env = append(env, name+"="+service[name])
		}
	}
	for _, name := range own {
		env = append(env, name+"="+set[name])
	}
	return env, nil
}

func (in EnvInput) envFrom(from corev1.EnvFromSource) (map[string]string, error) {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		object, err := in.ConfigMap(from.ConfigMapRef.Name)
		if apierrors.IsNotFound(err) && isTrue(from.ConfigMapRef.Optional) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		maps.Copy(data, object.Data)
	case from.SecretRef != nil:
		object, err := in.Secret(from.SecretRef.Name)
		if apierrors.IsNotFound(err) && isTrue(from.SecretRef.Optional) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		for key, value := range object.Data {
			data[key] = string(value)
		}
	}
	return data, nil
}

// value returns one variable's value; skip is set for an optional source that is missing.
func (in EnvInput) value(v *corev1.EnvVar, lookup func(string) (string, bool)) (value string, skip bool, err error) {
	if v.Value != "" || v.ValueFrom == nil {
		return Expand(v.Value, lookup), false, nil
	}
	switch from := v.ValueFrom; {
	case from.FieldRef != nil:
		value, err = Field(in.Pod, from.FieldRef.FieldPath, in.PodIPs, in.Node.IPs)
	case from.ResourceFieldRef != nil:
		value, err = Resource(in.Pod, in.Container, from.ResourceFieldRef, in.Node.Allocatable)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		object, err := in.ConfigMap(ref.Name)
		if err != nil {
			return "", apierrors.IsNotFound(err) && isTrue(ref.Optional), optionalError(err, ref.Optional)
		}
		value, ok := object.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, in.Pod.Namespace, ref.Name)
		}
		return value, !ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		object, err := in.Secret(ref.Name)
		if err != nil {
			return "", apierrors.IsNotFound(err) && isTrue(ref.Optional), optionalError(err, ref.Optional)
		}
		value, ok := object.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, in.Pod.Namespace, ref.Name)
		}
		return string(value), !ok, nil
	case from.FileKeyRef != nil:
		return in.fileValue(from.FileKeyRef)
	default:
		err = fmt.Errorf("environment variable %q has a source that this node does not know", v.Name)
	}
	return value, false, err
}

// fileValue reads a variable from a file of a volume.
func (in EnvInput) fileValue(ref *corev1.FileKeySelector) (value string, skip bool, err error) {
	file, err := in.File(ref.VolumeName, ref.Path)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	defer func() { _ = file.Close() }()
	value, err = EnvFileValue(file, ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	if value == "" && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return value, value == "", nil
}

func optionalError(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && isTrue(optional) {
		return nil
	}
	return err
}

func isTrue(b *bool) bool { return b != nil && *b }

// linked returns the services that get variables: those of the pod's namespace when it wants
// links, and always the API's own.
func linked(in EnvInput) []corev1.Service {
	var list []corev1.Service
	own := map[string]bool{}
	for _, s := range in.Services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		if s.Namespace == in.Pod.Namespace && *in.Pod.Spec.EnableServiceLinks {
			list, own[s.Name] = append(list, s), true
		}
	}
	for _, s := range in.Services {
		if s.Namespace == metaDefault && s.Name == "kubernetes" && !own[s.Name] && s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	return list
}

const metaDefault = "default"

func serviceVariables(services []corev1.Service) []corev1.EnvVar {
	var env []corev1.EnvVar
	add := func(name, value string) { env = append(env, corev1.EnvVar{Name: name, Value: value}) }
	variable := func(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }
	for _, s := range services {
		if len(s.Spec.Ports) == 0 {
			continue
		}
		prefix, ip := variable(s.Name), s.Spec.ClusterIP
		add(prefix+"_SERVICE_HOST", ip)
		add(prefix+"_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
		for _, p := range s.Spec.Ports {
			if p.Name != "" {
				add(prefix+"_SERVICE_PORT_"+variable(p.Name), strconv.Itoa(int(p.Port)))
			}
		}
		for i, p := range s.Spec.Ports {
			protocol := string(p.Protocol)
			if protocol == "" {
				protocol = "TCP"
			}
			port := strconv.Itoa(int(p.Port))
			url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
			if i == 0 {
				add(prefix+"_PORT", url)
			}
			name := prefix + "_PORT_" + port + "_" + strings.ToUpper(protocol)
			add(name, url)
			add(name+"_PROTO", strings.ToLower(protocol))
			add(name+"_PORT", port)
			add(name+"_ADDR", ip)
		}
	}
	return env
}
