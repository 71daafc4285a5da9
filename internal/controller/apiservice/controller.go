package apiservice

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller. Served and Check are required.
type Options struct {
	Served func() []schema.GroupVersion // everything that this server has
	// Changed is closed when that changes; each change has a channel of its own. Nil: it never does.
	Changed func() <-chan struct{}
	// Check asks another server whether it serves its group version.
	Check func(ctx context.Context, service *apiregistrationv1.APIService) error
	Every time.Duration // how often a server that answers is asked again, default 30s; one that does not, sooner at first
	Log   *slog.Logger  // default: discards
}

// Controller keeps APIServices. Make one with New, then call Run.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop

	mu      sync.Mutex // guards the fields below
	known   map[string]*apiregistrationv1.ServiceReference
	atStart map[string]bool
	done    map[string]bool
	failed  map[string]time.Duration // how long the last wait after a failure was
}

// New checks its arguments and returns a Controller that has started nothing.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if c == nil || informers == nil || opts.Served == nil || opts.Check == nil {
		return nil, errors.New("apiservice: New needs a client, informers, Served and Check")
	}
	opts.Every = cmp.Or(opts.Every, 30*time.Second)
	if opts.Every < 0 {
		return nil, errors.New("apiservice: Options.Every is negative")
	}
	k := &Controller{client: c, informers: informers, opts: opts, known: map[string]*apiregistrationv1.ServiceReference{},
		atStart: map[string]bool{}, done: map[string]bool{}, failed: map[string]time.Duration{}}
	var err error
	k.loop, err = controller.NewLoop(controller.LoopOptions{Name: "apiservice", MaxDelay: 30 * time.Second, Log: opts.Log, Reconcile: k.reconcile})
	if err != nil {
		return nil, err
	}
	k.loop.Watch(&apiregistrationv1.APIService{}, k.onAPIService)
	k.loop.Watch(&corev1.Service{}, func(old, current client.Object) { k.onService(cmp.Or(current, old)) })
	k.loop.Watch(&discoveryv1.EndpointSlice{}, func(old, current client.Object) {
		slice := cmp.Or(current, old)
		k.affected(slice.GetNamespace(), slice.GetLabels()[discoveryv1.LabelServiceName])
	})
	return k, nil
}

// Run works until ctx ends.
func (k *Controller) Run(ctx context.Context) error {
	var there apiregistrationv1.APIServiceList
	if err := k.client.List(ctx, &there); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	k.mu.Lock()
	for i := range there.Items {
		k.atStart[there.Items[i].Name] = true
	}
	k.mu.Unlock()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		for change := k.loop.Started(); ; {
			select {
			case <-ctx.Done():
				return
			case <-change:
			}
			if change = nil; k.opts.Changed != nil {
				change = k.opts.Changed()
			}
			k.refresh()
		}
	})
	return k.loop.Run(ctx, k.informers)
}

// refresh looks at all APIServices again.
func (k *Controller) refresh() {
	for _, gv := range k.opts.Served() {
		k.loop.Add(controller.Key{Name: gv.Version + "." + gv.Group})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name := range k.known {
		k.loop.Add(controller.Key{Name: name})
	}
}

func (k *Controller) onAPIService(old, current client.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if service, ok := current.(*apiregistrationv1.APIService); ok {
		k.known[service.Name] = service.Spec.Service
	} else {
		delete(k.known, old.GetName())
	}
	k.loop.Add(controller.Key{Name: cmp.Or(current, old).GetName()})
}

func (k *Controller) onService(service client.Object) {
	k.affected(service.GetNamespace(), service.GetName())
}

// affected looks again at the APIServices of a service.
func (k *Controller) affected(namespace, service string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, ref := range k.known {
		if ref != nil && ref.Namespace == namespace && ref.Name == service {
			k.loop.Add(controller.Key{Name: name})
		}
	}
}

// reconcile brings one APIService to what it should be, then its condition.
func (k *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	current := new(apiregistrationv1.APIService)
	err := k.client.Get(ctx, client.ObjectKey{Name: key.Name}, current)
	if apierrors.IsNotFound(err) {
		current = nil
	} else if err != nil {
		return 0, err
	}
	changed, err := k.register(ctx, key.Name, current)
	if err != nil || changed || current == nil {
		return 0, err // a change comes back as an event
	}
	if current.Spec.Service == nil {
		k.answered(key.Name)
		return 0, k.setCondition(ctx, current, helper.NewLocalAvailableAPIServiceCondition())
	}
	return k.checkRemote(ctx, current)
}

// register makes, changes or deletes the APIService as the group versions served here need it.
func (k *Controller) register(ctx context.Context, name string, current *apiregistrationv1.APIService) (changed bool, err error) {
	var desired *apiregistrationv1.APIService
	for _, gv := range k.opts.Served() {
		if gv.Version+"."+gv.Group == name {
			desired = wanted(gv)
		}
	}
	k.mu.Lock()
	atStart, done := k.atStart[name], k.done[name]
	k.mu.Unlock()
	todo := planRegistration(desired, current, atStart, done)
	switch todo {
	case nothing:
	case create:
		err = client.IgnoreAlreadyExists(k.client.Create(ctx, desired))
	case update:
		next := current.DeepCopy()
		next.Spec = desired.Spec
		err = k.client.Update(ctx, next)
	case remove:
		err = client.IgnoreNotFound(k.client.Delete(ctx, current, client.Preconditions{UID: &current.UID}))
	}
	if apierrors.IsConflict(err) {
		return true, nil // changed meanwhile: an event comes
	}
	if err == nil {
		k.mu.Lock()
		k.done[name] = true
		k.mu.Unlock()
	}
	return todo != nothing, err
}

// checkRemote finds out whether another server serves its group version.
func (k *Controller) checkRemote(ctx context.Context, service *apiregistrationv1.APIService) (time.Duration, error) {
	ref := service.Spec.Service
	found := behind{service: new(corev1.Service)}
	found.serviceErr = k.client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, found.service)
	if found.serviceErr == nil {
		var list discoveryv1.EndpointSliceList
		found.slicesErr = k.client.List(ctx, &list, client.InNamespace(ref.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: ref.Name})
		found.slices = list.Items
	}
	state, ask := planAvailable(ref, &found)
	if ask {
		if err := k.opts.Check(ctx, service); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return k.unanswered(service.Name), k.setCondition(ctx, service, notAvailable("FailedDiscoveryCheck", err.Error()))
		}
		state = condition(apiregistrationv1.ConditionTrue, "Passed", "all checks passed")
	}
	k.answered(service.Name)
	return k.opts.Every, k.setCondition(ctx, service, state)
}

// unanswered returns how long to wait before the server is asked again: twice as long each time.
func (k *Controller) unanswered(name string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed[name] = min(max(2*k.failed[name], 100*time.Millisecond), k.opts.Every)
	return k.failed[name]
}

func (k *Controller) answered(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.failed, name)
}

// setCondition writes the condition if it changes anything.
func (k *Controller) setCondition(ctx context.Context, service *apiregistrationv1.APIService, state apiregistrationv1.APIServiceCondition) error {
	next := service.DeepCopy()
	state.LastTransitionTime = metav1.Now()
	helper.SetAPIServiceCondition(next, state)
	if equality.Semantic.DeepEqual(next.Status, service.Status) {
		return nil
	}
	err := k.client.Status().Update(ctx, next)
	if err == nil && !strings.HasPrefix(state.Reason, "Local") {
		k.log(ctx, service.Name, state)
	}
	return client.IgnoreNotFound(err)
}

func (k *Controller) log(ctx context.Context, name string, state apiregistrationv1.APIServiceCondition) {
	if k.opts.Log != nil {
		k.opts.Log.LogAttrs(ctx, slog.LevelInfo, "an API server's availability changed", slog.String("apiService", name),
			slog.String("available", string(state.Status)), slog.String("reason", state.Reason), slog.String("message", state.Message))
	}
}
