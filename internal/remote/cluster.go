package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Options says how a cluster is reached. All but Dir and Logger are required.
type Options struct {
	Transport http.RoundTripper // to any of the servers, as the node
	NodeName  string
	Agent     string // user agent
	Dir       string // where what the cluster said is written down; "" nowhere
	Logger    *slog.Logger
}

// Cluster is a cluster as one of its nodes sees it. Make one with New, then call Run.
type Cluster struct {
	opts   Options
	scheme *runtime.Scheme
	mapper meta.RESTMapper
	api    ctrlclient.WithWatch

	mu      sync.Mutex // guards the fields below
	feeds   map[feedKey]*feed
	sources map[bool]*sources // of ConfigMaps (false) and Secrets (true)
	ctx     context.Context   //nolint:containedctx // of Run, for feeds that come later; nil before
	group   sync.WaitGroup
}

// feedKey tells feeds apart.
type feedKey struct {
	kind schema.GroupVersionKind
	own  bool // only what is of this node
}

// New checks opts and returns a Cluster. It asks nothing.
func New(opts Options) (*Cluster, error) {
	if opts.Transport == nil || opts.NodeName == "" {
		return nil, errors.New("remote: Transport and NodeName are required")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	scheme, mapper, err := kinds()
	if err != nil {
		return nil, err
	}
	config := &rest.Config{Host: "https://kubernetes", Transport: opts.Transport, UserAgent: opts.Agent, QPS: -1}
	api, err := ctrlclient.NewWithWatch(config, ctrlclient.Options{
		HTTPClient: &http.Client{Transport: opts.Transport}, Scheme: scheme, Mapper: mapper,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing to ask the cluster: %w", err)
	}
	return &Cluster{opts: opts, scheme: scheme, mapper: mapper, api: api, feeds: map[feedKey]*feed{}, sources: map[bool]*sources{}}, nil
}

// Run follows what was asked for until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	c.mu.Lock()
	c.ctx = ctx
	for _, f := range c.feeds {
		c.startLocked(f.run)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.mu.Unlock() //nolint:staticcheck // a barrier: who found ctx alive has joined the group
	c.group.Wait()
	return nil
}

// startLocked runs f beside Run. c.mu is held.
func (c *Cluster) startLocked(f func(context.Context)) {
	if c.ctx == nil || c.ctx.Err() != nil {
		return
	}
	ctx := c.ctx
	c.group.Go(func() { f(ctx) })
}

// Own is what concerns the node: its pods, their ConfigMaps and Secrets; and whatever else is asked for, as a whole.
func (c *Cluster) Own() *Informers { return &Informers{c, true} }

// All is everything.
func (c *Cluster) All() *Informers { return &Informers{c, false} }

// Informers gives events.
type Informers struct {
	cluster *Cluster
	own     bool
}

// GetInformer gives the changes of a kind. It does not wait for the first objects.
func (i *Informers) GetInformer(_ context.Context, obj ctrlclient.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	c := i.cluster
	switch obj.(type) {
	case *corev1.ConfigMap, *corev1.Secret:
		if i.own {
			_, secret := obj.(*corev1.Secret)
			return c.sourcesOf(secret)
		}
	}
	kind, err := apiutil.GVKForObject(obj, c.scheme)
	if err != nil {
		return nil, fmt.Errorf("following %T: %w", obj, err)
	}
	_, isPod := obj.(*corev1.Pod)
	return c.feed(feedKey{kind, i.own && isPod})
}

// feed is the feed of a kind, which it starts if need be.
func (c *Cluster) feed(key feedKey) (*feed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.feeds[key]; f != nil {
		return f, nil
	}
	listKind := key.kind.GroupVersion().WithKind(key.kind.Kind + "List")
	if _, err := c.newList(listKind); err != nil {
		return nil, err
	}
	opts := feedOptions{client: c.api, scheme: c.scheme, log: c.opts.Logger, newList: func() ctrlclient.ObjectList {
		list, _ := c.newList(listKind) // it was made above
		return list
	}}
	if key.own {
		opts.fields = fields.OneTermEqualSelector("spec.nodeName", c.opts.NodeName)
	}
	// All pods of a cluster are many, and nobody needs them before a server answers.
	if isPods := key.kind == corev1.SchemeGroupVersion.WithKind("Pod"); c.opts.Dir != "" && (!isPods || key.own) {
		opts.file = filepath.Join(c.opts.Dir, key.kind.Kind+".json")
	}
	f := newFeed(opts)
	c.feeds[key] = f
	c.startLocked(f.run)
	return f, nil
}

func (c *Cluster) newList(kind schema.GroupVersionKind) (ctrlclient.ObjectList, error) {
	obj, err := c.scheme.New(kind)
	if err != nil {
		return nil, fmt.Errorf("following %s: %w", kind, err)
	}
	list, ok := obj.(ctrlclient.ObjectList)
	if !ok {
		return nil, fmt.Errorf("following %s: %T is no list", kind, obj)
	}
	return list, nil
}

// Confirmed waits until the node's pods are known as the API has them, not as they were written down.
func (c *Cluster) Confirmed(ctx context.Context) error {
	f, err := c.feed(feedKey{corev1.SchemeGroupVersion.WithKind("Pod"), true})
	if err != nil {
		return err
	}
	select {
	case <-f.real:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Alone reports whether the node's pods are known only as they were written down: no server has answered yet.
func (c *Cluster) Alone() bool {
	f, err := c.feed(feedKey{corev1.SchemeGroupVersion.WithKind("Pod"), true})
	if err != nil || !f.HasSynced() {
		return false
	}
	select {
	case <-f.real:
		return false
	default:
		return true
	}
}

// Node is the node's object as it is known; nil is not at all.
func (c *Cluster) Node() *corev1.Node {
	f, err := c.feed(feedKey{corev1.SchemeGroupVersion.WithKind("Node"), false})
	if err != nil {
		return nil
	}
	node, _ := f.get("", c.opts.NodeName).(*corev1.Node)
	return node
}

// Client reads and writes as the node. Services, EndpointSlices and Namespaces come from the feeds that there are; all else is
// asked of a server, so that who has just written reads that.
func (c *Cluster) Client() ctrlclient.Client {
	return &client{WithWatch: c.api, cluster: c, fresh: true}
}

// Follower is Client for who acts on events only: it reads every kind that has a feed from that.
func (c *Cluster) Follower() ctrlclient.Client { return &client{WithWatch: c.api, cluster: c} }

// client reads from the feeds what they have.
type client struct {
	ctrlclient.WithWatch
	cluster *Cluster
	fresh   bool
}

// readable is the feed that answers for an object or a list; nil asks a server.
func (c *client) readable(obj runtime.Object) *feed {
	kind, err := apiutil.GVKForObject(obj, c.cluster.scheme)
	if err != nil {
		return nil
	}
	if _, isList := obj.(ctrlclient.ObjectList); isList {
		kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	}
	if c.fresh {
		switch kind {
		case corev1.SchemeGroupVersion.WithKind("Service"), corev1.SchemeGroupVersion.WithKind("Namespace"),
			discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"):
		default:
			return nil
		}
	}
	return c.synced(kind)
}

func (c *client) synced(kind schema.GroupVersionKind) *feed {
	c.cluster.mu.Lock()
	f := c.cluster.feeds[feedKey{kind, false}]
	c.cluster.mu.Unlock()
	if f == nil || !f.HasSynced() {
		return nil
	}
	return f
}

// Get implements client.Client. What a feed has comes from it; ConfigMaps and Secrets do while no server answers.
func (c *client) Get(ctx context.Context, key ctrlclient.ObjectKey, obj ctrlclient.Object, opts ...ctrlclient.GetOption) error {
	if f := c.readable(obj); f != nil {
		found := f.get(key.Namespace, key.Name)
		if found == nil {
			kind, _ := apiutil.GVKForObject(obj, c.cluster.scheme)
			mapping, err := c.cluster.mapper.RESTMapping(kind.GroupKind(), kind.Version)
			if err != nil {
				return fmt.Errorf("reading %s: %w", key, err)
			}
			return apierrors.NewNotFound(mapping.Resource.GroupResource(), key.Name)
		}
		copyInto(obj, found)
		return nil
	}
	err := c.WithWatch.Get(ctx, key, obj, opts...)
	if err == nil || !unreachable(err) {
		return err
	}
	if found := c.cluster.lastKnown(obj, key); found != nil {
		copyInto(obj, found)
		return nil
	}
	return err
}

// List implements client.Client.
func (c *client) List(ctx context.Context, list ctrlclient.ObjectList, opts ...ctrlclient.ListOption) error {
	options := ctrlclient.ListOptions{}
	options.ApplyOptions(opts)
	f := c.readable(list)
	if f == nil || options.FieldSelector != nil || options.Raw != nil {
		return c.WithWatch.List(ctx, list, opts...)
	}
	var items []runtime.Object
	for _, obj := range f.all() {
		if options.Namespace != "" && obj.GetNamespace() != options.Namespace {
			continue
		}
		if options.LabelSelector != nil && !options.LabelSelector.Matches(labelsOf(obj)) {
			continue
		}
		items = append(items, obj)
	}
	if err := meta.SetList(list, items); err != nil {
		return fmt.Errorf("gathering objects: %w", err)
	}
	return nil
}

// copyInto makes obj a shallow copy of found, which is of the same type.
func copyInto(obj, found ctrlclient.Object) {
	reflect.ValueOf(obj).Elem().Set(reflect.ValueOf(found).Elem())
}

// unreachable reports whether an error is not an answer of a server.
func unreachable(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}
