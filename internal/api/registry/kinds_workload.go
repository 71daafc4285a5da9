package registry

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
)

// workloadKinds are what makes pods and what decides how they compete.
func workloadKinds() []*definition {
	apps, batch := appsv1.SchemeGroupVersion, batchv1.SchemeGroupVersion
	return []*definition{
		define[appsv1.ControllerRevision](apps, "controllerrevisions", controllerrevision.Strategy),
		define[appsv1.DaemonSet](apps, "daemonsets", daemonset.Strategy).normalized().short("ds").category("all").
			withStatus(daemonset.StatusStrategy),
		define[appsv1.Deployment](apps, "deployments", deployment.Strategy).normalized().short("deploy").category("all").
			withStatus(deployment.StatusStrategy).scaled(deploymentScale()),
		define[appsv1.ReplicaSet](apps, "replicasets", replicaset.Strategy).short("rs").category("all").
			withStatus(replicaset.StatusStrategy).selects(replicaSetFields).scaled(replicaSetScale()),
		define[appsv1.StatefulSet](apps, "statefulsets", statefulset.Strategy).normalized().short("sts").category("all").
			withStatus(statefulset.StatusStrategy).scaled(statefulSetScale()),

		define[autoscalingv2.HorizontalPodAutoscaler](autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", horizontalpodautoscaler.Strategy).
			short("hpa").category("all").withStatus(horizontalpodautoscaler.StatusStrategy).
			alsoServedAs(define[autoscalingv1.HorizontalPodAutoscaler](autoscalingv1.SchemeGroupVersion, "horizontalpodautoscalers", horizontalpodautoscaler.Strategy).normalized()),

		define[batchv1.CronJob](batch, "cronjobs", cronjob.Strategy).short("cj").category("all").
			withStatus(cronjob.StatusStrategy),
		define[batchv1.Job](batch, "jobs", job.Strategy).category("all").
			withStatus(job.StatusStrategy).selects(jobFields).warnsOfDelete(warnOfOrphans),

		define[policyv1.PodDisruptionBudget](policyv1.SchemeGroupVersion, "poddisruptionbudgets", poddisruptionbudget.Strategy).
			short("pdb").withStatus(poddisruptionbudget.StatusStrategy),
		define[schedulingv1.PriorityClass](schedulingv1.SchemeGroupVersion, "priorityclasses", priorityclass.Strategy).short("pc"),
	}
}

// warnOfOrphans says what becomes of a job's pods where a delete does not say it. The default of
// batch/v1 is to leave them (Kubernetes, registry/batch/job/storage).
func warnOfOrphans(ctx context.Context, opts *metav1.DeleteOptions) {
	//nolint:staticcheck // the deprecated field still counts
	if opts != nil && opts.PropagationPolicy == nil && opts.OrphanDependents == nil &&
		job.Strategy.DefaultGarbageCollectionPolicy(ctx) == rest.OrphanDependents {
		warning.AddWarning(ctx, "", "child pods are preserved by default when jobs are deleted; "+
			"set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning")
	}
}
