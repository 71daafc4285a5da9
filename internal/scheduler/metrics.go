package scheduler

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what a Scheduler does, under kube-scheduler's names. A nil Metrics counts nothing.
type Metrics struct {
	attempts   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	algorithm  prometheus.Histogram
	victims    prometheus.Histogram
	preemption prometheus.Counter
	sli        *prometheus.HistogramVec
	tries      prometheus.Histogram
	pending    *prometheus.Desc
	cache      *prometheus.Desc

	mu        sync.Mutex // guards scheduler
	scheduler *Scheduler // whose queue is looked at
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	name := func(s string) string { return prometheus.BuildFQName("scheduler", "", s) }
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: name("schedule_attempts_total"),
			Help: "Searches for a node for a pod, by result: scheduled, unschedulable, or error if the binding was refused."}, []string{"result", "profile"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name("scheduling_attempt_duration_seconds"),
			Help: "Time from the begin of a search to its binding or failure.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"result", "profile"}),
		algorithm: prometheus.NewHistogram(prometheus.HistogramOpts{Name: name("scheduling_algorithm_duration_seconds"),
			Help: "Time of a search, preemption's included.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		victims: prometheus.NewHistogram(prometheus.HistogramOpts{Name: name("preemption_victims"),
			Help: "Pods selected to make room for another.", Buckets: prometheus.ExponentialBuckets(1, 2, 7)}),
		preemption: prometheus.NewCounter(prometheus.CounterOpts{Name: name("preemption_attempts_total"),
			Help: "Times that preemption was considered."}),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name("pod_scheduling_sli_duration_seconds"),
			Help: "Time from a pod's arrival to its binding, by the number of searches.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 20)}, []string{"attempts"}),
		tries: prometheus.NewHistogram(prometheus.HistogramOpts{Name: name("pod_scheduling_attempts"),
			Help: "Searches that a pod needed until it was bound.", Buckets: prometheus.ExponentialBuckets(1, 2, 5)}),
		pending: prometheus.NewDesc(name("pending_pods"), "Pods without a node: active, in backoff, unschedulable, or gated.", []string{"queue"}, nil),
		cache:   prometheus.NewDesc(name("cache_size"), "Nodes, pods, and pods assumed to be on a node.", []string{"type"}, nil),
	}
	for _, c := range []prometheus.Collector{m.attempts, m.duration, m.algorithm, m.victims, m.preemption, m.sli, m.tries, m} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return nil, fmt.Errorf("scheduler: registering metrics: %w", err)
		}
	}
	return m, nil
}

// Describe implements prometheus.Collector for what is counted when asked for.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.pending
	out <- m.cache
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	s := m.scheduler
	m.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	inActive, inBackoff, unschedulable := s.queue.counts()
	gated, nodes, pods, assumed := len(s.queue.gated), s.state.NodeCount(), len(s.state.pods), len(s.assumed)
	s.mu.Unlock()
	gauge := func(desc *prometheus.Desc, value int, label string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), label)
	}
	gauge(m.pending, inActive, "active")
	gauge(m.pending, inBackoff, "backoff")
	gauge(m.pending, unschedulable, "unschedulable")
	gauge(m.pending, gated, "gated")
	gauge(m.cache, nodes, "nodes")
	gauge(m.cache, pods, "pods")
	gauge(m.cache, assumed, "assumed_pods")
}

// watch says whose queue is counted until stop is called.
func (m *Metrics) watch(s *Scheduler) (stop func()) {
	if m == nil {
		return func() {}
	}
	set := func(s *Scheduler) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.scheduler = s
	}
	set(s)
	return func() { set(nil) }
}

// searched counts a search that began at a time.
func (m *Metrics) searched(w *waiting, began time.Time, found bool) {
	if m == nil {
		return
	}
	took := time.Since(began).Seconds()
	m.algorithm.Observe(took)
	if !found {
		m.attempts.WithLabelValues("unschedulable", w.pod.Spec.SchedulerName).Inc()
		m.duration.WithLabelValues("unschedulable", w.pod.Spec.SchedulerName).Observe(took)
	}
}

// attempt counts how a search with a node ended.
func (m *Metrics) attempt(j *job, result string) {
	if m == nil {
		return
	}
	m.attempts.WithLabelValues(result, j.pod.Spec.SchedulerName).Inc()
	m.duration.WithLabelValues(result, j.pod.Spec.SchedulerName).Observe(time.Since(j.started).Seconds())
	if result != "scheduled" {
		return
	}
	attempts := "15+"
	if j.attempts < 15 {
		attempts = fmt.Sprint(j.attempts)
	}
	m.sli.WithLabelValues(attempts).Observe(time.Since(j.since).Seconds())
	m.tries.Observe(float64(j.attempts))
}

func (m *Metrics) preempting() {
	if m != nil {
		m.preemption.Inc()
	}
}

func (m *Metrics) evicting(victims int) {
	if m != nil {
		m.victims.Observe(float64(victims))
	}
}
