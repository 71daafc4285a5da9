package disruption

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller. The zero value suits production.
type Options struct {
	Workers int           // budgets counted at once; default 4
	Batch   time.Duration // wait for more pod events before a budget is counted; default 20ms
	Retry   time.Duration // until a budget that could not be counted is tried again; default 1m
	Log     *slog.Logger  // default: discard
}

// Controller counts the pods of each budget.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	budgets   *controller.Loop // keys are budgets
	targets   *controller.Loop // keys are pods that may have a stale DisruptionTarget condition

	mu        sync.Mutex // guards selectors
	selectors map[string]map[string]labels.Selector
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	opts.Batch = cmp.Or(opts.Batch, 20*time.Millisecond)
	opts.Retry = cmp.Or(opts.Retry, time.Minute)
	if opts.Batch < 0 || opts.Retry < 0 {
		return nil, fmt.Errorf("disruption: Batch is %v and Retry %v, want at least 0", opts.Batch, opts.Retry)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	dc := &Controller{client: c, informers: informers, recorder: recorder, opts: opts, selectors: map[string]map[string]labels.Selector{}}
	var err1, err2 error
	dc.budgets, err1 = controller.NewLoop(controller.LoopOptions{Name: "disruption", Workers: opts.Workers, Log: opts.Log, Reconcile: dc.reconcile})
	dc.targets, err2 = controller.NewLoop(controller.LoopOptions{Name: "disruption-target", Workers: opts.Workers, Log: opts.Log, Reconcile: dc.clearTarget})
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	dc.budgets.Watch(&policyv1.PodDisruptionBudget{}, dc.onBudget)
	dc.budgets.Watch(&corev1.Pod{}, dc.onPod)
	dc.targets.Watch(&corev1.Pod{}, dc.onTarget)
	return dc, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return controller.RunAll(ctx, c.informers, c.budgets, c.targets)
}

// Stats returns the counts of the loop over budgets.
func (c *Controller) Stats() controller.LoopStats { return c.budgets.Stats() }

func (c *Controller) onBudget(old, current client.Object) {
	obj := current
	if obj == nil {
		obj = old
	}
	key := controller.KeyOf(obj)
	c.mu.Lock()
	if pdb, ok := current.(*policyv1.PodDisruptionBudget); ok {
		if c.selectors[key.Namespace] == nil {
			c.selectors[key.Namespace] = map[string]labels.Selector{}
		}
		selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		if err != nil {
			selector = labels.Nothing() // reconcile will say so
		}
		c.selectors[key.Namespace][key.Name] = selector
	} else if delete(c.selectors[key.Namespace], key.Name); len(c.selectors[key.Namespace]) == 0 {
		delete(c.selectors, key.Namespace)
	}
	c.mu.Unlock()
	c.budgets.Add(key)
}

func (c *Controller) onPod(old, current client.Object) {
	before, _ := old.(*corev1.Pod)
	after, _ := current.(*corev1.Pod)
	if before != nil && after != nil && sameForBudgets(before, after) {
		return
	}
	names := map[string]bool{}
	if before != nil {
		for _, name := range c.covering(before) {
			names[name] = true
		}
	}
	if after != nil {
		covering := c.covering(after)
		for _, name := range covering {
			names[name] = true
		}
		if len(covering) > 1 {
			c.recorder.Event(after, corev1.EventTypeWarning, "MultiplePodDisruptionBudgets", fmt.Sprintf(
				"Pod %q/%q matches multiple PodDisruptionBudgets.  Chose %q arbitrarily.", after.Namespace, after.Name, covering[0]))
		}
	}
	for name := range names {
		c.budgets.AddAfter(controller.Key{Namespace: namespaceOf(before, after), Name: name}, c.opts.Batch)
	}
}

func namespaceOf(before, after *corev1.Pod) string {
	if after != nil {
		return after.Namespace
	}
	return before.Namespace
}

// sameForBudgets reports whether no budget can count the two states of a pod differently.
func sameForBudgets(before, after *corev1.Pod) bool {
	was, is := metav1.GetControllerOfNoCopy(before), metav1.GetControllerOfNoCopy(after)
	return controller.PodReady(before) == controller.PodReady(after) && (before.DeletionTimestamp == nil) == (after.DeletionTimestamp == nil) &&
		before.UID == after.UID && maps.Equal(before.Labels, after.Labels) && apiequality.Semantic.DeepEqual(was, is)
}

// covering lists the budgets that select a pod, in the order of their names.
func (c *Controller) covering(pod *corev1.Pod) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name, selector := range c.selectors[pod.Namespace] {
		if selector.Matches(labels.Set(pod.Labels)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *Controller) onTarget(_, current client.Object) {
	if pod, ok := current.(*corev1.Pod); ok {
		if wait, ok := staleIn(pod, time.Now()); ok {
			c.targets.AddAfter(controller.KeyOf(pod), wait)
		}
	}
}

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var pdb policyv1.PodDisruptionBudget
	if err := c.client.Get(ctx, key, &pdb); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	wait, err := c.count(ctx, &pdb)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		return wait, nil
	case apierrors.IsConflict(err), ctx.Err() != nil:
		return 0, err
	}
	// Allow nothing before anything else: what the status said may be wrong by now.
	c.opts.Log.Warn("disruption budget allows nothing, because its pods cannot be counted",
		"namespace", key.Namespace, "name", key.Name, "error", err)
	return c.opts.Retry, c.write(ctx, &pdb, planFailure(&pdb, err))
}

// count brings the status of a budget up to date.
func (c *Controller) count(ctx context.Context, pdb *policyv1.PodDisruptionBudget) (time.Duration, error) {
	pods, err := c.podsOf(ctx, pdb)
	if err != nil {
		c.recorder.Event(pdb, corev1.EventTypeWarning, "NoPods", fmt.Sprintf("Failed to get pods: %v", err))
		return 0, err
	}
	if len(pods) == 0 {
		c.recorder.Event(pdb, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	expected, desired, unmanaged, err := c.expectations(ctx, pdb, pods)
	if err != nil {
		c.recorder.Event(pdb, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed",
			fmt.Sprintf("Failed to calculate the number of expected pods: %v", err))
		return 0, err
	}
	if len(unmanaged) > 0 {
		c.recorder.Event(pdb, corev1.EventTypeWarning, "UnmanagedPods", fmt.Sprintf("Pods selected by this PodDisruptionBudget (selector: %v) were found "+
			"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" "+
			"field of the PDB to an integer value.", pdb.Spec.Selector))
	}
	p := planStatus(pdb, pods, expected, desired, time.Now())
	for _, pod := range p.overdue {
		c.recorder.Event(pod, corev1.EventTypeWarning, "NotDeleted",
			fmt.Sprintf("Pod was expected by PDB %s/%s to be deleted but it wasn't", pdb.Namespace, pdb.Name))
	}
	if !p.changed {
		return p.recheck, nil
	}
	return p.recheck, c.write(ctx, pdb, p.status)
}

// expectations is how many pods there should be, and how many of them healthy.
func (c *Controller) expectations(ctx context.Context, pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, unmanaged []string, err error) {
	switch {
	case scaled(pdb):
		if expected, unmanaged, err = c.expectedPods(ctx, pods); err != nil {
			return 0, 0, nil, err
		}
	case pdb.Spec.MinAvailable != nil:
		expected = int32(len(pods))
	}
	desired, err = planDesired(pdb, expected)
	return expected, desired, unmanaged, err
}

func (c *Controller) podsOf(ctx context.Context, pdb *policyv1.PodDisruptionBudget) ([]*corev1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := c.client.List(ctx, &list, client.InNamespace(pdb.Namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, err
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// write sets the status on the revision that was looked at, so that no eviction in between is lost.
func (c *Controller) write(ctx context.Context, pdb *policyv1.PodDisruptionBudget, status policyv1.PodDisruptionBudgetStatus) error {
	next := pdb.DeepCopy()
	next.Status = status
	return client.IgnoreNotFound(c.client.Status().Update(ctx, next))
}

// clearTarget takes back a stale DisruptionTarget condition.
func (c *Controller) clearTarget(ctx context.Context, key controller.Key) (time.Duration, error) {
	var pod corev1.Pod
	if err := c.client.Get(ctx, key, &pod); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	now := time.Now()
	wait, ok := staleIn(&pod, now)
	if !ok || wait > 0 {
		return wait, nil
	}
	return 0, client.IgnoreNotFound(c.client.Status().Update(ctx, withoutTarget(&pod, now)))
}
