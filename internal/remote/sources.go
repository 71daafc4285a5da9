package remote

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func labelsOf(obj ctrlclient.Object) labels.Set { return obj.GetLabels() }

// sources follows the ConfigMaps, or the Secrets, that the node's pods name, each by itself. It is an informer that is
// never short of anything: what a pod needs at its start is read, not awaited.
type sources struct {
	cluster *Cluster
	secret  bool

	mu       sync.Mutex // guards the fields below
	handlers []*handle
	pods     map[types.UID][]types.NamespacedName
	feeds    map[types.NamespacedName]*source
}

// source is one object that some pods name.
type source struct {
	feed   *feed
	cancel context.CancelFunc
	users  int
}

// sourcesOf is the informer of ConfigMaps or of Secrets.
func (c *Cluster) sourcesOf(secret bool) (*sources, error) {
	c.mu.Lock()
	s := c.sources[secret]
	if s != nil {
		c.mu.Unlock()
		return s, nil
	}
	s = &sources{cluster: c, secret: secret, pods: map[types.UID][]types.NamespacedName{}, feeds: map[types.NamespacedName]*source{}}
	c.sources[secret] = s
	c.mu.Unlock()
	pods, err := c.feed(feedKey{corev1.SchemeGroupVersion.WithKind("Pod"), true})
	if err != nil {
		return nil, err
	}
	_, err = pods.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { s.podIs(obj) },
		UpdateFunc: func(_, obj any) { s.podIs(obj) },
		DeleteFunc: func(obj any) { s.podWent(obj) },
	})
	return s, err
}

func (s *sources) podIs(obj any) {
	if pod, ok := obj.(*corev1.Pod); ok {
		s.set(pod.UID, namesIn(pod, s.secret))
	}
}

func (s *sources) podWent(obj any) {
	if pod, ok := obj.(*corev1.Pod); ok {
		s.set(pod.UID, nil)
	}
}

// set notes what a pod names.
func (s *sources) set(uid types.UID, names []types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.pods[uid]
	if slices.Equal(before, names) {
		return
	}
	for _, name := range names {
		s.useLocked(name)
	}
	for _, name := range before {
		s.dropLocked(name)
	}
	if s.pods[uid] = names; names == nil {
		delete(s.pods, uid)
	}
}

func (s *sources) useLocked(name types.NamespacedName) {
	if known := s.feeds[name]; known != nil {
		known.users++
		return
	}
	c := s.cluster
	newList, kind := func() ctrlclient.ObjectList { return &corev1.ConfigMapList{} }, "ConfigMap"
	if s.secret {
		newList, kind = func() ctrlclient.ObjectList { return &corev1.SecretList{} }, "Secret"
	}
	opts := feedOptions{
		client: c.api, scheme: c.scheme, log: c.opts.Logger, newList: newList,
		namespace: name.Namespace, fields: fields.OneTermEqualSelector("metadata.name", name.Name),
	}
	if c.opts.Dir != "" {
		opts.file = filepath.Join(c.opts.Dir, kind, fmt.Sprintf("%s_%s.json", name.Namespace, name.Name))
	}
	made := &source{feed: newFeed(opts), users: 1}
	_, _ = made.feed.AddEventHandler(s)
	s.feeds[name] = made
	c.mu.Lock()
	c.startLocked(func(ctx context.Context) {
		own, cancel := context.WithCancel(ctx)
		defer cancel()
		s.mu.Lock()
		made.cancel = cancel
		if made.users == 0 {
			cancel()
		}
		s.mu.Unlock()
		made.feed.run(own)
	})
	c.mu.Unlock()
}

func (s *sources) dropLocked(name types.NamespacedName) {
	known := s.feeds[name]
	if known == nil {
		return
	}
	if known.users--; known.users > 0 {
		return
	}
	delete(s.feeds, name)
	if known.cancel != nil {
		known.cancel()
	}
	known.feed.forgetFile()
}

// lastKnown is a ConfigMap or Secret as it was last seen; nil is: it was not.
func (c *Cluster) lastKnown(obj ctrlclient.Object, key ctrlclient.ObjectKey) ctrlclient.Object {
	secret := false
	switch obj.(type) {
	case *corev1.ConfigMap:
	case *corev1.Secret:
		secret = true
	default:
		return nil
	}
	c.mu.Lock()
	s := c.sources[secret]
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	known := s.feeds[key]
	s.mu.Unlock()
	if known == nil {
		return nil
	}
	return known.feed.get(key.Namespace, key.Name)
}

// OnAdd implements toolscache.ResourceEventHandler: what one object's feed tells goes to all handlers.
func (s *sources) OnAdd(obj any, initial bool) {
	for _, h := range s.listeners() {
		h.to.OnAdd(obj, initial)
	}
}

// OnUpdate implements toolscache.ResourceEventHandler.
func (s *sources) OnUpdate(before, obj any) {
	for _, h := range s.listeners() {
		h.to.OnUpdate(before, obj)
	}
}

// OnDelete implements toolscache.ResourceEventHandler.
func (s *sources) OnDelete(obj any) {
	for _, h := range s.listeners() {
		h.to.OnDelete(obj)
	}
}

func (s *sources) listeners() []*handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.handlers)
}

// AddEventHandler implements cache.Informer.
func (s *sources) AddEventHandler(to toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	h := &handle{to: to, synced: make(chan struct{})}
	close(h.synced)
	s.mu.Lock()
	s.handlers = append(s.handlers, h)
	var known []*source
	for _, one := range s.feeds {
		known = append(known, one)
	}
	s.mu.Unlock()
	for _, one := range known {
		for _, obj := range one.feed.all() {
			to.OnAdd(obj, true)
		}
	}
	return h, nil
}

// AddEventHandlerWithResyncPeriod implements cache.Informer.
func (s *sources) AddEventHandlerWithResyncPeriod(to toolscache.ResourceEventHandler, _ time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return s.AddEventHandler(to)
}

// AddEventHandlerWithOptions implements cache.Informer.
func (s *sources) AddEventHandlerWithOptions(to toolscache.ResourceEventHandler, _ toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	return s.AddEventHandler(to)
}

// RemoveEventHandler implements cache.Informer.
func (s *sources) RemoveEventHandler(registration toolscache.ResourceEventHandlerRegistration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers = slices.DeleteFunc(s.handlers, func(h *handle) bool { return h == registration })
	return nil
}

// AddIndexers implements cache.Informer.
func (s *sources) AddIndexers(toolscache.Indexers) error {
	return fmt.Errorf("remote: there are no indexes")
}

// HasSynced implements cache.Informer.
func (s *sources) HasSynced() bool { return true }

// HasSyncedChecker implements cache.Informer.
func (s *sources) HasSyncedChecker() toolscache.DoneChecker {
	done := make(chan struct{})
	close(done)
	return &handle{synced: done}
}

// IsStopped implements cache.Informer.
func (s *sources) IsStopped() bool { return false }

// namesIn are the ConfigMaps, or the Secrets, that a pod names, in a fixed order and each once.
func namesIn(pod *corev1.Pod, secret bool) []types.NamespacedName {
	var names []string
	add := func(isSecret bool, name string) {
		if isSecret == secret && name != "" {
			names = append(names, name)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			add(false, v.ConfigMap.Name)
		case v.Secret != nil:
			add(true, v.Secret.SecretName)
		case v.Projected != nil:
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					add(false, p.ConfigMap.Name)
				}
				if p.Secret != nil {
					add(true, p.Secret.Name)
				}
			}
		}
	}
	for _, ref := range pod.Spec.ImagePullSecrets {
		add(true, ref.Name)
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				add(false, from.ConfigMapRef.Name)
			}
			if from.SecretRef != nil {
				add(true, from.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				add(false, r.Name)
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				add(true, r.Name)
			}
		}
	}
	slices.Sort(names)
	var out []types.NamespacedName
	for _, name := range slices.Compact(names) {
		out = append(out, types.NamespacedName{Namespace: pod.Namespace, Name: name})
	}
	return out
}
