package volume

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// file is one file of a volume.
type file struct {
	data []byte
	mode int32
	uid  *int64 // owner; nil is root
}

func isTrue(b *bool) bool { return b != nil && *b }

func (m *Manager) configMapFiles(ctx context.Context, namespace, name string, items []corev1.KeyToPath, optional *bool, mode int32) (map[string]file, error) {
	object, err := m.source.ConfigMap(ctx, namespace, name)
	if apierrors.IsNotFound(err) && isTrue(optional) {
		object, err = &corev1.ConfigMap{}, nil
	}
	if err != nil {
		return nil, err
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for k, v := range object.Data {
		data[k] = []byte(v)
	}
	for k, v := range object.BinaryData {
		data[k] = v
	}
	return pick(data, items, isTrue(optional), mode, "configmap")
}

func (m *Manager) secretFiles(ctx context.Context, namespace, name string, items []corev1.KeyToPath, optional *bool, mode int32) (map[string]file, error) {
	object, err := m.source.Secret(ctx, namespace, name)
	if apierrors.IsNotFound(err) && isTrue(optional) {
		object, err = &corev1.Secret{}, nil
	}
	if err != nil {
		return nil, err
	}
	return pick(object.Data, items, isTrue(optional), mode, "secret")
}

// pick chooses the keys that items name, or all.
func pick(data map[string][]byte, items []corev1.KeyToPath, optional bool, mode int32, kind string) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v, mode: mode}
		}
		return files, nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf("%s references non-existent %s key: %s", map[string]string{"configmap": "configmap", "secret": "secret"}[kind], kind, item.Key)
		}
		f := file{data: value, mode: mode}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		files[item.Path] = f
	}
	return files, nil
}

func downwardFiles(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode int32, facts Facts) (map[string]file, error) {
	files := map[string]file{}
	var errs []error
	for i := range items {
		item := &items[i]
		f := file{mode: mode}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = facts.Field(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = facts.Resource(pod, item.ResourceFieldRef)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.data = []byte(value)
		files[item.Path] = f
	}
	return files, errors.Join(errs...)
}

func (m *Manager) projectedFiles(ctx context.Context, pod *corev1.Pod, p *corev1.ProjectedVolumeSource, facts Facts) (map[string]file, error) {
	all := map[string]file{}
	fallback := mode(p.DefaultMode, 0o644)
	var errs []error
	add := func(files map[string]file, err error) {
		if err != nil {
			errs = append(errs, err)
		}
		for name, f := range files {
			all[name] = f
		}
	}
	for i := range p.Sources {
		switch s := &p.Sources[i]; {
		case s.ConfigMap != nil:
			add(m.configMapFiles(ctx, pod.Namespace, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, fallback))
		case s.Secret != nil:
			add(m.secretFiles(ctx, pod.Namespace, s.Secret.Name, s.Secret.Items, s.Secret.Optional, fallback))
		case s.DownwardAPI != nil:
			add(downwardFiles(pod, s.DownwardAPI.Items, fallback, facts))
		case s.ServiceAccountToken != nil:
			add(m.tokenFile(ctx, pod, s.ServiceAccountToken, fallback))
		case s.ClusterTrustBundle != nil:
			roots, err := m.source.Roots(ctx, s.ClusterTrustBundle)
			add(map[string]file{s.ClusterTrustBundle.Path: {data: []byte(roots), mode: fallback}}, err)
		default:
			add(nil, errors.New("a source of the projected volume is not supported by the node"))
		}
	}
	return all, errors.Join(errs...)
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

type token struct {
	value   string
	issued  time.Time
	expires time.Time
}

// stale reports whether a token should be renewed: after 80 % of its life, or a day.
func (t token) stale(now time.Time) bool {
	return now.After(t.issued.Add(t.expires.Sub(t.issued)*8/10)) || now.Sub(t.issued) > 24*time.Hour
}

func (m *Manager) tokenFile(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection, fallback int32) (map[string]file, error) {
	seconds := int64(3600)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	key := tokenKey{pod.UID, p.Audience, seconds}
	now := time.Now()
	m.mu.Lock()
	t, ok := m.tokens[key]
	m.mu.Unlock()
	if !ok || t.stale(now) {
		value, expires, err := m.source.Token(ctx, pod, p.Audience, seconds)
		switch {
		case err == nil:
			t = token{value, now, expires}
			m.mu.Lock()
			m.tokens[key] = t
			m.mu.Unlock()
		case !ok || now.After(t.expires):
			return nil, fmt.Errorf("failed to fetch token: %w", err)
		}
	}
	f := file{data: []byte(t.value), mode: 0o600}
	switch {
	case group(pod) != nil:
		f.mode = 0o600 // writeAtomic opens it to the group
	case onlyUser(pod) != nil:
		f.uid = onlyUser(pod)
	default:
		f.mode = fallback
	}
	return map[string]file{p.Path: f}, nil
}

// onlyUser is the user that all containers of the pod run as, nil if they differ or it is not
// known: then everybody must be able to read the token.
func onlyUser(pod *corev1.Pod) *int64 {
	var user *int64
	var fallback *int64
	if pod.Spec.SecurityContext != nil {
		fallback = pod.Spec.SecurityContext.RunAsUser
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		u := fallback
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			u = c.SecurityContext.RunAsUser
		}
		if u == nil || user != nil && *user != *u {
			return nil
		}
		user = u
	}
	return user
}

// forgetTokens drops a pod's tokens.
func (m *Manager) forgetTokens(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.tokens {
		if key.pod == uid {
			delete(m.tokens, key)
		}
	}
}

// checkPath refuses a path that would leave the volume. Validation has done so already; a
// node must not depend on it.
func checkPath(p string) error {
	if p == "" || path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") || strings.HasPrefix(p, "..") {
		return fmt.Errorf("invalid path %q: must be relative and must not contain '..'", p)
	}
	return nil
}
