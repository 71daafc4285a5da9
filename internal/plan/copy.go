package plan

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/server"
)

// page is how many objects are read at once; importers is how many are written at once.
const (
	page      = 2000
	importers = 32
)

// cluster is the real one.
type cluster struct {
	dynamic  dynamic.Interface
	metadata metadata.Interface
	found    []*metav1.APIResourceList
	version  version.Info
}

// connect asks the cluster what it serves.
func connect(config *rest.Config) (*cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	c := &cluster{}
	var err error
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make a client of the cluster: %w", err)
	}
	if c.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make a client of the cluster: %w", err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the cluster: %w", err)
	}
	served, err := found.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the cluster for its version: %w", err)
	}
	c.version = version.Info{Major: served.Major, Minor: served.Minor, GitVersion: served.GitVersion}
	c.found, err = found.ServerPreferredResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) { // of an extension server that is away
		return nil, fmt.Errorf("ask the cluster what it serves: %w", err)
	}
	return c, nil
}

// left out of the copy: what would reach out of it, what says nothing about what will happen, and what is made anew.
func leftOut(resource schema.GroupResource) bool {
	switch resource.String() {
	case "validatingwebhookconfigurations.admissionregistration.k8s.io", "mutatingwebhookconfigurations.admissionregistration.k8s.io",
		"apiservices.apiregistration.k8s.io", "events", "events.events.k8s.io", "componentstatuses", "leases.coordination.k8s.io",
		"certificatesigningrequests.certificates.k8s.io", "flowschemas.flowcontrol.apiserver.k8s.io",
		"prioritylevelconfigurations.flowcontrol.apiserver.k8s.io":
		return true
	}
	return false
}

const definitions = "customresourcedefinitions"

// read gives every object of the kinds that want selects as JSON. Secrets come without their data. What the user may not
// read is skipped and named in missing.
func (c *cluster) read(ctx context.Context, want func(schema.GroupVersionResource) bool, give func(schema.GroupVersionKind, []byte) error) (missing []string, err error) {
	for _, list := range c.found {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for i := range list.APIResources {
			r := &list.APIResources[i]
			gvr := gv.WithResource(r.Name)
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "watch") || leftOut(gvr.GroupResource()) || !want(gvr) {
				continue
			}
			err := c.readKind(ctx, gvr, gv.WithKind(r.Kind), give)
			switch {
			case apierrors.IsForbidden(err):
				missing = append(missing, gvr.GroupResource().String())
			case err != nil && !apierrors.IsNotFound(err):
				return missing, fmt.Errorf("copy %s: %w", gvr.GroupResource(), err)
			}
		}
	}
	return missing, nil
}

func (c *cluster) readKind(ctx context.Context, gvr schema.GroupVersionResource, kind schema.GroupVersionKind, give func(schema.GroupVersionKind, []byte) error) error {
	opts := metav1.ListOptions{Limit: page}
	for {
		var items []unstructured.Unstructured
		if gvr == (schema.GroupVersionResource{Version: "v1", Resource: "secrets"}) {
			list, err := c.metadata.Resource(gvr).List(ctx, opts)
			if err != nil {
				return err
			}
			for i := range list.Items {
				u, err := bare(&list.Items[i], kind)
				if err != nil {
					return err
				}
				items = append(items, u)
			}
			opts.Continue = list.Continue
		} else {
			list, err := c.dynamic.Resource(gvr).List(ctx, opts)
			if err != nil {
				return err
			}
			items, opts.Continue = list.Items, list.GetContinue()
		}
		for i := range items {
			items[i].SetGroupVersionKind(kind)
			data, err := items[i].MarshalJSON()
			if err != nil {
				return err
			}
			if err := give(kind, data); err != nil {
				return err
			}
		}
		if opts.Continue == "" {
			return nil
		}
	}
}

// bare is an object that has nothing but its metadata.
func bare(from *metav1.PartialObjectMetadata, kind schema.GroupVersionKind) (unstructured.Unstructured, error) {
	u := unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(kind)
	u.SetName(from.Name)
	u.SetNamespace(from.Namespace)
	u.SetUID(from.UID)
	u.SetLabels(from.Labels)
	u.SetCreationTimestamp(from.CreationTimestamp)
	u.SetOwnerReferences(from.OwnerReferences)
	return u, nil
}

// serviceRange is the range of the cluster's service addresses; a usual one if nobody says.
func (c *cluster) serviceRange(ctx context.Context) netip.Prefix {
	list, err := c.dynamic.Resource(networkingv1.SchemeGroupVersion.WithResource("servicecidrs")).List(ctx, metav1.ListOptions{})
	if err == nil {
		for i := range list.Items {
			cidrs, _, _ := unstructured.NestedStringSlice(list.Items[i].Object, "spec", "cidrs")
			for _, text := range cidrs {
				if prefix, err := netip.ParsePrefix(text); err == nil {
					return prefix
				}
			}
		}
	}
	return netip.MustParsePrefix("10.96.0.0/12")
}

// double is the copy: a control plane of its own.
type double struct {
	plane   *server.ControlPlane
	missing []string // kinds that the user may not read
	agents  *agents
	stop    func() error
}

// newDouble copies the cluster and starts its controllers, or only its scheduler. Call stop in the end.
func (c *cluster) newDouble(ctx context.Context, onlyScheduler bool) (*double, error) {
	dir, err := os.MkdirTemp(memoryFolder(), "gantry-plan-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the copy: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a key for the copy: %w", err), os.RemoveAll(dir))
	}
	d := &double{}
	work, cancel := context.WithCancel(ctx)
	d.plane, err = server.NewControlPlane(work, server.ControlPlaneOptions{
		EtcdDir: filepath.Join(dir, "etcd"), EncryptionKey: filepath.Join(dir, "encryption.yaml"), NoFsync: true, Tick: 10 * time.Millisecond,
		ClientCAs: x509.NewCertPool, SigningKey: key, RootCA: []byte("copy"),
		PodCIDR: netip.MustParsePrefix("10.0.0.0/8"), ServiceCIDR: c.serviceRange(ctx), ClusterDomain: "cluster.local",
		Version: c.version, Logger: slog.New(slog.DiscardHandler), NoControllers: onlyScheduler,
		Prepare: func(ctx context.Context, plane *server.ControlPlane) (err error) {
			d.missing, err = c.fill(ctx, plane)
			return err
		},
	})
	if err != nil {
		cancel()
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	ended := make(chan error, 1)
	go func() { ended <- d.plane.Run(work) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		if d.agents != nil {
			d.agents.wait()
		}
		return errors.Join(err, os.RemoveAll(dir))
	})
	select {
	case <-d.plane.Controlled():
		return d, nil
	case err := <-ended:
		ended <- nil
		return nil, errors.Join(fmt.Errorf("start the copy: %w", err), d.stop())
	}
}

// memoryFolder is a file system in memory where the machine has one.
func memoryFolder() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return os.TempDir()
}

// fill copies the cluster's objects: first what says which kinds there are, then the rest.
func (c *cluster) fill(ctx context.Context, plane *server.ControlPlane) (missing []string, err error) {
	isDefinition := func(r schema.GroupVersionResource) bool { return r.Resource == definitions }
	var kinds []schema.GroupVersionKind
	missing, err = c.read(ctx, isDefinition, func(kind schema.GroupVersionKind, data []byte) error {
		kinds = append(kinds, servedKind(data))
		return plane.Registry().ResourceOf(kind).Import(ctx, data)
	})
	if err != nil {
		return missing, err
	}
	for _, kind := range kinds { // definitions are served a moment after they are stored
		if kind.Kind != "" && !served(ctx, plane, kind) {
			return missing, ctx.Err()
		}
	}
	into, wait := importing(ctx, plane)
	rest, err := c.read(ctx, func(r schema.GroupVersionResource) bool { return !isDefinition(r) }, into)
	return append(missing, rest...), errors.Join(err, wait())
}

// served waits until the copy serves a kind; false if ctx ends first.
func served(ctx context.Context, plane *server.ControlPlane, kind schema.GroupVersionKind) bool {
	for {
		changed := plane.Registry().Changed() // before the look, so that no change falls between them
		if plane.Registry().ResourceOf(kind) != nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// servedKind is a kind that a definition whose names are accepted makes.
func servedKind(definition []byte) schema.GroupVersionKind {
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(definition); err != nil {
		return schema.GroupVersionKind{}
	}
	group, _, _ := unstructured.NestedString(u.Object, "spec", "group")
	kind, _, _ := unstructured.NestedString(u.Object, "status", "acceptedNames", "kind")
	versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
	for _, v := range versions {
		one, _ := v.(map[string]any)
		if served, _ := one["served"].(bool); served {
			name, _ := one["name"].(string)
			return schema.GroupVersionKind{Group: group, Version: name, Kind: kind}
		}
	}
	return schema.GroupVersionKind{}
}

// importing writes what it is given with several hands. wait returns the first error when all is written.
func importing(ctx context.Context, plane *server.ControlPlane) (give func(schema.GroupVersionKind, []byte) error, wait func() error) {
	type object struct {
		kind schema.GroupVersionKind
		data []byte
	}
	objects := make(chan object, 4*importers)
	failed := make(chan error, importers)
	var hands sync.WaitGroup
	for range importers {
		hands.Go(func() {
			for o := range objects {
				r := plane.Registry().ResourceOf(o.kind)
				if r == nil {
					continue // of an extension server, or of a version that this program does not know
				}
				if err := r.Import(ctx, o.data); err != nil {
					select {
					case failed <- fmt.Errorf("copy a %s: %w", o.kind.Kind, err):
					default:
					}
				}
			}
		})
	}
	give = func(kind schema.GroupVersionKind, data []byte) error {
		select {
		case objects <- object{kind, data}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return give, func() error {
		close(objects)
		hands.Wait()
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}
}
