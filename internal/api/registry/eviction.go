package registry

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-helpers/apps/poddisruptionbudget"

	"gantry.dev/gantry/internal/store"
)

// maxDisruptedPods is how many evictions may wait for the budget's controller to see them
// (Kubernetes, registry/core/pod/storage.MaxDisruptedPodSize).
const maxDisruptedPods = 2000

// evictionAttempts is how often an eviction that lost a race starts again (the same package,
// EvictionsRetry).
const evictionAttempts = 20

func evictionSubresource() *subresource {
	return &subresource{
		info:   SubresourceInfo{Name: "eviction", Kind: policyv1.SchemeGroupVersion.WithKind("Eviction"), Verbs: []string{"create"}},
		newObj: func() runtime.Object { return &policyv1.Eviction{} },
		create: evict,
	}
}

// evicting is one eviction on its way.
type evicting struct {
	pods            *Resource
	namespace, name string
	opts            *metav1.DeleteOptions // as the client gave them
}

// evict deletes a pod if its disruption budget allows it, after saying why in its conditions.
func evict(ctx context.Context, r *Resource, namespace, name string, in runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	eviction, ok := in.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Eviction object: %T", in))
	}
	del, err := evictionOptions(eviction, opts)
	if err != nil {
		return nil, err
	}
	e := evicting{pods: r, namespace: namespace, name: name, opts: del}
	entry, gone, err := e.withoutBudget(ctx)
	if err != nil {
		return nil, err
	}
	if !gone {
		err = e.withinBudget(ctx, entry)
	}
	if err != nil {
		return nil, err
	}
	return success(), nil
}

// evictionOptions are the options of the delete; the request and the object may both ask for a dry run.
func evictionOptions(eviction *policyv1.Eviction, opts *metav1.CreateOptions) (*metav1.DeleteOptions, error) {
	del := &metav1.DeleteOptions{}
	if eviction.DeleteOptions != nil {
		del = eviction.DeleteOptions.DeepCopy()
	}
	if unsafe := del.IgnoreStoreReadErrorWithClusterBreakingPotential; unsafe != nil && *unsafe {
		return nil, apierrors.NewInvalid(policyv1.SchemeGroupVersion.WithKind("Eviction").GroupKind(), eviction.Name, field.ErrorList{
			field.Invalid(field.NewPath("deleteOptions", "ignoreStoreReadErrorWithClusterBreakingPotential"), true, "can not be set for pod eviction, try after removing the option"),
		})
	}
	switch {
	case len(del.DryRun) == 0:
		del.DryRun = opts.DryRun
	case len(opts.DryRun) != 0 && !slices.Equal(del.DryRun, opts.DryRun):
		return nil, fmt.Errorf("the eviction asks for dry run %v and the request for %v", del.DryRun, opts.DryRun)
	}
	return del, nil
}

// withoutBudget evicts a pod whose end disrupts nothing: one that is over, has not begun or is being
// deleted. Otherwise it returns the pod as it is.
func (e *evicting) withoutBudget(ctx context.Context) (entry *store.Entry, gone bool, err error) {
	for range evictionAttempts {
		entry, err = e.pods.Get(ctx, e.namespace, e.name, "")
		if err != nil {
			return nil, false, err
		}
		pod := entry.Object.(*corev1.Pod)
		pending := pod.Status.Phase == corev1.PodPending
		deleting := pod.DeletionTimestamp != nil
		over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if !pending && !deleting && !over {
			return entry, false, nil
		}
		opts := e.opts
		if pending && !deleting && !e.pinned() { // it must not become ready meanwhile
			opts = at(opts, entry.Rev)
		}
		err = e.remove(ctx, opts)
		if err == nil || !apierrors.IsConflict(err) || e.pinned() {
			break
		}
	}
	return entry, err == nil, err
}

// pinned reports whether the client named the revision to be evicted; then there is no second try.
func (e *evicting) pinned() bool {
	return e.opts.Preconditions != nil && e.opts.Preconditions.ResourceVersion != nil
}

// at is opts for nothing but the given revision.
func at(opts *metav1.DeleteOptions, revision int64) *metav1.DeleteOptions {
	opts = opts.DeepCopy()
	if opts.Preconditions == nil {
		opts.Preconditions = &metav1.Preconditions{}
	}
	text := strconv.FormatInt(revision, 10)
	opts.Preconditions.ResourceVersion = &text
	return opts
}

// withinBudget evicts a running pod if the budget that covers it, if any, allows one more disruption.
func (e *evicting) withinBudget(ctx context.Context, entry *store.Entry) error {
	pod := entry.Object.(*corev1.Pod)
	budget, err := e.budget(ctx, pod)
	if err != nil {
		return err
	}
	opts := e.opts
	unhealthy := budget != nil && !isReady(pod) && mayEvictUnhealthy(budget)
	switch {
	case unhealthy: // it is not counted, unless it becomes ready meanwhile
		opts = at(opts, entry.Rev)
	case budget != nil:
		if err := e.take(ctx, budget); err != nil {
			return err
		}
	}
	err = e.remove(ctx, opts)
	if unhealthy && apierrors.IsConflict(err) && !e.pinned() {
		return overBudget(10, fmt.Sprintf("The disruption budget %s is still being processed by the server.", budget.Name))
	}
	return err
}

// budget finds the one budget that covers pod, nil if there is none.
func (e *evicting) budget(ctx context.Context, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	list, err := e.budgets().List(ctx, e.namespace, ListOptions{})
	if err != nil {
		return nil, err
	}
	var found *policyv1.PodDisruptionBudget
	for _, entry := range list.Entries {
		budget := entry.Object.(*policyv1.PodDisruptionBudget)
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue // a selector that cannot be read selects nothing
		}
		if found != nil {
			return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
				Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
				Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
			}}
		}
		found = budget
	}
	return found, nil
}

func (e *evicting) budgets() *Resource {
	return e.pods.registry.Resource(policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"))
}

func isReady(pod *corev1.Pod) bool {
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	return i >= 0 && pod.Status.Conditions[i].Status == corev1.ConditionTrue
}

// mayEvictUnhealthy reports whether a pod that is not ready may go without being counted.
func mayEvictUnhealthy(budget *policyv1.PodDisruptionBudget) bool {
	if policy := budget.Spec.UnhealthyPodEvictionPolicy; policy != nil && *policy == policyv1.AlwaysAllow {
		return true
	}
	return budget.Status.CurrentHealthy >= budget.Status.DesiredHealthy && budget.Status.DesiredHealthy > 0
}

// take counts one disruption in the budget's status: an update on the revision that was looked at, so
// that no two evictions, of any servers, share one.
func (e *evicting) take(ctx context.Context, budget *policyv1.PodDisruptionBudget) error {
	ctx = genericapirequest.WithUser(ctx, &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}})
	for range evictionAttempts {
		if err := disruptable(budget); err != nil {
			return err
		}
		if isDryRun(e.opts.DryRun) {
			return nil
		}
		next := budget.DeepCopy()
		next.Status.DisruptionsAllowed--
		if next.Status.DisruptionsAllowed == 0 {
			poddisruptionbudget.UpdateDisruptionAllowedCondition(next)
		}
		if next.Status.DisruptedPods == nil {
			next.Status.DisruptedPods = map[string]metav1.Time{}
		}
		next.Status.DisruptedPods[e.name] = metav1.NewTime(time.Now())
		_, _, err := e.budgets().Update(ctx, e.namespace, budget.Name, "status", next, "kube-apiserver", &metav1.UpdateOptions{})
		if err == nil || !apierrors.IsConflict(err) {
			return err
		}
		entry, err := e.budgets().Get(ctx, e.namespace, budget.Name, "")
		if err != nil {
			return err
		}
		budget = entry.Object.(*policyv1.PodDisruptionBudget)
	}
	return apierrors.NewTimeoutError(fmt.Sprintf("couldn't update PodDisruptionBudget %q due to conflicts", budget.Name), 10)
}

// disruptable is nil if budget allows one more disruption.
func disruptable(budget *policyv1.PodDisruptionBudget) error {
	status, name := &budget.Status, budget.Name
	forbidden := func(why string) error {
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), name, fmt.Errorf("%s", why))
	}
	switch {
	case status.ObservedGeneration < budget.Generation:
		return overBudget(10, fmt.Sprintf("The disruption budget %s is still being processed by the server.", name))
	case status.DisruptionsAllowed < 0:
		return forbidden("pdb disruptions allowed is negative")
	case len(status.DisruptedPods) > maxDisruptedPods:
		return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller")
	case status.DisruptionsAllowed > 0:
		return nil
	}
	message := fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", name)
	condition := meta.FindStatusCondition(status.Conditions, policyv1.DisruptionAllowedCondition)
	explained := condition != nil && condition.Status == metav1.ConditionFalse && condition.Message != ""
	switch {
	case explained && condition.Reason == policyv1.SyncFailedReason: // the numbers cannot be trusted
		message += " because it failed sync: " + condition.Message
	case status.CurrentHealthy <= status.DesiredHealthy:
		message = fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", name, status.DesiredHealthy, status.CurrentHealthy)
	case explained:
		message += fmt.Sprintf(" (%s): %s", condition.Reason, condition.Message)
	}
	return overBudget(0, message)
}

// overBudget is the 429 for an eviction that must wait.
func overBudget(retrySeconds int, cause string) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retrySeconds)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: cause})
	return err
}

// remove says in the pod's conditions why it goes, and deletes it.
func (e *evicting) remove(ctx context.Context, opts *metav1.DeleteOptions) error {
	opts = opts.DeepCopy()
	entry, err := e.pods.change(ctx, e.namespace, e.name, isDryRun(opts.DryRun), func(current *store.Entry) (store.Object, error) {
		if err := e.pods.checkPreconditions(current, opts); err != nil {
			return nil, err
		}
		evicted := *current.Object.(*corev1.Pod)
		evicted.Status.Conditions = withCondition(evicted.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: evicted.Generation,
			Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
		})
		return &evicted, nil
	})
	if err != nil {
		return err
	}
	if opts.Preconditions != nil && opts.Preconditions.ResourceVersion != nil {
		opts = at(opts, entry.Rev) // the condition has moved it on
	}
	_, err = e.pods.Delete(ctx, e.namespace, e.name, opts)
	return err
}
