package informer

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"
)

// never is a source whose informers never have their first objects.
type never struct{ informer }

type informer struct {
	controllertest.FakeInformer
	done    chan struct{}
	removed int
}

type registration struct{ done chan struct{} }

func (r registration) HasSynced() bool                          { return false }
func (r registration) HasSyncedChecker() toolscache.DoneChecker { return r }
func (r registration) Name() string                             { return "test" }
func (r registration) Done() <-chan struct{}                    { return r.done }
func (i *informer) RemoveEventHandler(toolscache.ResourceEventHandlerRegistration) error {
	i.removed++
	return nil
}

func (i *informer) AddEventHandler(toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	return registration{i.done}, nil
}

func (n *never) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	if _, ok := obj.(*corev1.Secret); ok {
		return nil, errors.New("secrets are not served")
	}
	return &n.informer, nil
}

func TestHandlerToldOfEveryKindOfEvent(t *testing.T) {
	var got []string
	h := handler(func(old, current client.Object) {
		name := func(o client.Object) string {
			if o == nil {
				return "none"
			}
			return o.GetName()
		}
		got = append(got, name(old)+">"+name(current))
	})
	named := func(name string) *corev1.Pod { return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	h.OnAdd(named("a"), true)
	h.OnUpdate(named("a"), named("b"))
	h.OnDelete(named("b"))
	h.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "c", Obj: named("c")})
	h.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "d"})
	h.OnAdd("no object", false)
	if want := "none>a a>b b>none c>none"; strings.Join(got, " ") != want {
		t.Errorf("the events were %q, want %q", got, want)
	}
}

func TestSubscribeEndsWithItsContext(t *testing.T) {
	source := &never{informer{done: make(chan struct{})}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	nothing := func(client.Object, client.Object) {}
	if _, err := Subscribe(ctx, source, Subscription{&corev1.Pod{}, nothing}); !errors.Is(err, context.Canceled) {
		t.Errorf("Subscribe with an ended context = %v", err)
	}
	if source.removed != 1 {
		t.Errorf("%d handlers were removed, want 1", source.removed)
	}
	close(source.done)
	stop, err := Subscribe(t.Context(), source, Subscription{&corev1.Pod{}, nothing}, Subscription{&corev1.Node{}, nothing})
	if err != nil {
		t.Fatal(err)
	}
	if stop(); source.removed != 3 {
		t.Errorf("%d handlers were removed, want 3", source.removed)
	}
}

func TestOneRefusedKindRemovesTheOthers(t *testing.T) {
	source := &never{}
	nothing := func(client.Object, client.Object) {}
	_, err := Listen(t.Context(), source, Subscription{&corev1.Pod{}, nothing}, Subscription{&corev1.Secret{}, nothing})
	if err == nil || !strings.Contains(err.Error(), "*v1.Secret: secrets are not served") || source.removed != 1 {
		t.Errorf("Listen = %v and removed %d handlers", err, source.removed)
	}
	if _, err := Listen(t.Context(), &informertest.FakeInformers{}, Subscription{Object: &corev1.Pod{}}); err == nil {
		t.Error("a subscription without OnEvent was taken")
	}
}
