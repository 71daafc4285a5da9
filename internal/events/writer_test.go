package events

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u-1", ResourceVersion: "7"}}
}

// written runs record against a writer in a bubble and returns what it wrote.
func written(t *testing.T, src Source, record func(*Recorder)) []corev1.Event {
	t.Helper()
	var list corev1.EventList
	synctest.Test(t, func(t *testing.T) {
		c := fake.NewClientBuilder().Build()
		w, err := New(c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		record(w.Recorder(src))
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := c.List(context.Background(), &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
	})
	sort.Slice(list.Items, func(i, j int) bool { return list.Items[i].Message < list.Items[j].Message })
	return list.Items
}

func TestOldShape(t *testing.T) {
	got := written(t, Source{Component: "replicaset-controller"}, func(r *Recorder) {
		for range 3 {
			r.Event(pod("a"), "Normal", "SuccessfulCreate", "Created pod: web-1")
			time.Sleep(time.Second)
		}
	})
	if len(got) != 1 {
		t.Fatalf("%d events, want 1", len(got))
	}
	e := got[0]
	if e.Count != 3 || e.LastTimestamp.Sub(e.FirstTimestamp.Time) != 2*time.Second {
		t.Errorf("count %d, first %v, last %v; want 3 over 2s", e.Count, e.FirstTimestamp, e.LastTimestamp)
	}
	if e.Source.Component != "replicaset-controller" || e.ReportingController != "replicaset-controller" {
		t.Errorf("source %v, reportingController %q", e.Source, e.ReportingController)
	}
	if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.APIVersion != "v1" || e.InvolvedObject.UID != "u-1" {
		t.Errorf("involvedObject %v", e.InvolvedObject)
	}
	if !strings.HasPrefix(e.Name, "a.") {
		t.Errorf("name %q, want a.HEX", e.Name)
	}
}

func TestSimilarAreCombinedAndLimited(t *testing.T) {
	got := written(t, Source{Component: "replicaset-controller"}, func(r *Recorder) {
		for i := range 100 {
			r.Event(pod("a"), "Normal", "SuccessfulCreate", fmt.Sprintf("Created pod: web-%02d", i))
			time.Sleep(time.Millisecond)
		}
	})
	// Nine texts of their own, the tenth and later share one event; 25 writes in all.
	if len(got) != 10 {
		t.Fatalf("%d events, want 10", len(got))
	}
	if combined := got[0]; combined.Count != 16 || combined.Message != combinedPrefix+"Created pod: web-24" {
		t.Errorf("combined: count %d, message %q; want 16, web-24", combined.Count, combined.Message)
	}
}

func TestSeriesShape(t *testing.T) {
	src := Source{Component: "default-scheduler", Host: "n1", Actions: map[string]string{"FailedScheduling": "Scheduling"}}
	got := written(t, src, func(r *Recorder) {
		for range 2 {
			r.Event(pod("a"), "Warning", "FailedScheduling", "0/1 nodes are available: 1 Too many pods.")
		}
	})
	if len(got) != 1 {
		t.Fatalf("%d events, want 1", len(got))
	}
	e := got[0]
	if e.Action != "Scheduling" || e.ReportingInstance != "default-scheduler-n1" || e.EventTime.IsZero() || e.Count != 0 {
		t.Errorf("action %q, instance %q, eventTime %v, count %d", e.Action, e.ReportingInstance, e.EventTime, e.Count)
	}
	if e.Series == nil || e.Series.Count != 2 {
		t.Errorf("series %v, want count 2", e.Series)
	}
}

func TestFullQueueDropsOldest(t *testing.T) {
	w, err := New(fake.NewClientBuilder().Build(), Options{QueueSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	r := w.Recorder(Source{Component: "x"})
	for _, note := range []string{"one", "two", "three"} {
		r.Event(pod("a"), "Normal", "R", note)
	}
	first, _ := w.take()
	if first.note != "two" || w.Stats().Dropped != 1 {
		t.Errorf("oldest left is %q, dropped %d; want two, 1", first.note, w.Stats().Dropped)
	}
}
