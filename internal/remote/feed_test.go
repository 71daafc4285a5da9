package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// server is a list of pods that can be changed, watched, and taken away.
type server struct {
	ctrlclient.WithWatch

	mu      sync.Mutex
	down    bool
	version int
	pods    map[string]*corev1.Pod
	watches []*watch.FakeWatcher
}

func (s *server) List(_ context.Context, list ctrlclient.ObjectList, _ ...ctrlclient.ListOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("connection refused")
	}
	into := list.(*corev1.PodList)
	into.ResourceVersion = fmt.Sprint(s.version)
	for _, pod := range s.pods {
		into.Items = append(into.Items, *pod.DeepCopy())
	}
	return nil
}

func (s *server) Watch(context.Context, ctrlclient.ObjectList, ...ctrlclient.ListOption) (watch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("connection refused")
	}
	w := watch.NewFakeWithChanSize(100, false)
	s.watches = append(s.watches, w)
	return w, nil
}

// put adds or changes a pod; told says whether watches hear of it.
func (s *server) put(name string, told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name, UID: types.UID(name), ResourceVersion: fmt.Sprint(s.version)}}
	before := s.pods[name]
	s.pods[name] = pod
	for _, w := range s.watches {
		switch {
		case !told:
		case before == nil:
			w.Add(pod.DeepCopy())
		default:
			w.Modify(pod.DeepCopy())
		}
	}
}

// fall takes the server away, or back, and ends its watches.
func (s *server) fall(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	for _, w := range s.watches {
		w.Stop()
	}
	s.watches = nil
}

// heard notes events.
type heard struct {
	mu     sync.Mutex
	events []string
}

func (h *heard) add(kind string, obj any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, kind+obj.(ctrlclient.Object).GetName())
}

func (h *heard) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.events
	h.events = nil
	slices.Sort(out)
	return strings.Join(out, " ")
}

func follow(t *testing.T, s *server, file string) (*feed, *heard, func()) {
	t.Helper()
	f := newFeed(feedOptions{client: s, newList: func() ctrlclient.ObjectList { return &corev1.PodList{} }, file: file, log: slog.New(slog.DiscardHandler)})
	h := &heard{}
	_, err := f.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { h.add("+", obj) }, UpdateFunc: func(_, obj any) { h.add("~", obj) }, DeleteFunc: func(obj any) { h.add("-", obj) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(ctx)
	}()
	return f, h, func() {
		cancel()
		<-done
	}
}

// TestFeed takes the server away, changes what it has, and starts without it from what was written down.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{pods: map[string]*corev1.Pod{}}
		s.put("a", false)
		s.put("b", false)
		file := filepath.Join(t.TempDir(), "known", "Pod.json")
		_, h, stop := follow(t, s, file)
		expect := func(what, want string, after time.Duration) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := h.take(); got != want {
				t.Errorf("%s: heard %q, want %q", what, got, want)
			}
		}
		expect("at first", "+a +b", time.Millisecond)
		s.put("c", true)
		s.put("a", true)
		expect("changes", "+c ~a", time.Millisecond)
		s.fall(true)
		expect("the server goes", "", time.Minute)
		s.fall(false)
		expect("it is back", "", 4*time.Second)
		s.put("d", true)
		expect("a change after that", "+d", time.Millisecond)
		time.Sleep(2 * time.Second) // written down
		stop()

		s.fall(true)
		f, h2, stop2 := follow(t, s, file)
		h = h2
		expect("a start without a server", "+a +b +c +d", time.Second)
		select {
		case <-f.real:
			t.Error("what was written down counts as the API's")
		default:
		}
		s.mu.Lock()
		delete(s.pods, "b")
		s.mu.Unlock()
		s.put("c", false)
		s.fall(false)
		expect("then there is one", "-b ~c", 5*time.Second)
		select {
		case <-f.real:
		default:
			t.Error("what the API has does not count")
		}
		stop2()
	})
}

func TestNamesIn(t *testing.T) {
	ref := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}, Spec: corev1.PodSpec{
		ImagePullSecrets: []corev1.LocalObjectReference{ref("pull")},
		Volumes: []corev1.Volume{
			{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("files")}}},
			{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}}},
		},
		Containers: []corev1.Container{{
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("env")}}},
			Env:     []corev1.EnvVar{{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref("keys")}}}},
		}},
	}}
	if got := fmt.Sprint(namesIn(pod, false)); got != "[n/env n/files]" {
		t.Errorf("ConfigMaps: %s", got)
	}
	if got := fmt.Sprint(namesIn(pod, true)); got != "[n/keys n/pull]" {
		t.Errorf("Secrets: %s", got)
	}
}
