package managedfields

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	admissionregistrationv1alpha1 "k8s.io/api/admissionregistration/v1alpha1"
	admissionregistrationv1beta1 "k8s.io/api/admissionregistration/v1beta1"
	apiserverinternalv1alpha1 "k8s.io/api/apiserverinternal/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1alpha2 "k8s.io/api/coordination/v1alpha2"
	coordinationv1beta1 "k8s.io/api/coordination/v1beta1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	resourcev1alpha3 "k8s.io/api/resource/v1alpha3"
	resourcev1beta1 "k8s.io/api/resource/v1beta1"
	resourcev1beta2 "k8s.io/api/resource/v1beta2"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagev1beta1 "k8s.io/api/storage/v1beta1"
	apiregistrationinstall "k8s.io/kube-aggregator/pkg/apis/apiregistration/install"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/registry/apiservice"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apiserverinternal/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/apiserverinternal/storageversion"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/coordination/leasecandidate"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/ingressclass"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/kubernetes/pkg/registry/resource/deviceclass"
	"k8s.io/kubernetes/pkg/registry/resource/devicetaintrule"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaim"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaimtemplate"
	"k8s.io/kubernetes/pkg/registry/resource/resourcepoolstatusrequest"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"
)

// The packages above register themselves; this group is registered by who uses it.
var _ = func() (done struct{}) {
	apiregistrationinstall.Install(legacyscheme.Scheme)
	return done
}()

// widerKinds are the kinds that only clients write, in all their versions.
func widerKinds() []testKind {
	claims, policies := resourceclaim.NewStrategy(nil, nil), validatingadmissionpolicy.NewStrategy(nil, nil)
	return []testKind{
		{func() Object { return &corev1.LimitRange{} }, map[string]any{"": limitrange.Strategy}},
		{func() Object { return &corev1.PersistentVolume{} }, map[string]any{"": persistentvolume.Strategy, "status": persistentvolume.StatusStrategy}},
		{func() Object { return &corev1.PersistentVolumeClaim{} }, map[string]any{"": persistentvolumeclaim.Strategy, "status": persistentvolumeclaim.StatusStrategy}},
		{func() Object { return &corev1.PodTemplate{} }, map[string]any{"": podtemplate.Strategy}},
		{func() Object { return &corev1.ReplicationController{} }, map[string]any{"": replicationcontroller.Strategy, "status": replicationcontroller.StatusStrategy}},
		{func() Object { return &corev1.ResourceQuota{} }, map[string]any{"": resourcequota.Strategy, "status": resourcequota.StatusStrategy}},
		{func() Object { return &appsv1.DaemonSet{} }, map[string]any{"": daemonset.Strategy, "status": daemonset.StatusStrategy}},
		{func() Object { return &appsv1.StatefulSet{} }, map[string]any{"": statefulset.Strategy, "status": statefulset.StatusStrategy}},
		{func() Object { return &autoscalingv1.HorizontalPodAutoscaler{} }, map[string]any{"": horizontalpodautoscaler.Strategy, "status": horizontalpodautoscaler.StatusStrategy}},
		{func() Object { return &autoscalingv2.HorizontalPodAutoscaler{} }, map[string]any{"": horizontalpodautoscaler.Strategy, "status": horizontalpodautoscaler.StatusStrategy}},
		{func() Object { return &batchv1.CronJob{} }, map[string]any{"": cronjob.Strategy, "status": cronjob.StatusStrategy}},
		{func() Object { return &batchv1.Job{} }, map[string]any{"": job.Strategy, "status": job.StatusStrategy}},
		{func() Object { return &certificatesv1.CertificateSigningRequest{} }, map[string]any{"": certificates.Strategy, "status": certificates.StatusStrategy, "approval": certificates.ApprovalStrategy}},
		{func() Object { return &coordinationv1alpha2.LeaseCandidate{} }, map[string]any{"": leasecandidate.Strategy}},
		{func() Object { return &coordinationv1beta1.LeaseCandidate{} }, map[string]any{"": leasecandidate.Strategy}},
		{func() Object { return &eventsv1.Event{} }, map[string]any{"": event.Strategy}},
		{func() Object { return &flowcontrolv1.FlowSchema{} }, map[string]any{"": flowschema.Strategy, "status": flowschema.StatusStrategy}},
		{func() Object { return &flowcontrolv1.PriorityLevelConfiguration{} }, map[string]any{"": prioritylevelconfiguration.Strategy, "status": prioritylevelconfiguration.StatusStrategy}},
		{func() Object { return &apiserverinternalv1alpha1.StorageVersion{} }, map[string]any{"": storageversion.Strategy, "status": storageversion.StatusStrategy}},
		{func() Object { return &networkingv1.Ingress{} }, map[string]any{"": ingress.Strategy, "status": ingress.StatusStrategy}},
		{func() Object { return &networkingv1.IngressClass{} }, map[string]any{"": ingressclass.Strategy}},
		{func() Object { return &networkingv1.NetworkPolicy{} }, map[string]any{"": networkpolicy.Strategy}},
		{func() Object { return &networkingv1beta1.IPAddress{} }, map[string]any{"": ipaddress.Strategy}},
		{func() Object { return &networkingv1beta1.ServiceCIDR{} }, map[string]any{"": servicecidr.Strategy, "status": servicecidr.StatusStrategy}},
		{func() Object { return &nodev1.RuntimeClass{} }, map[string]any{"": runtimeclass.Strategy}},
		{func() Object { return &policyv1.PodDisruptionBudget{} }, map[string]any{"": poddisruptionbudget.Strategy, "status": poddisruptionbudget.StatusStrategy}},
		{func() Object { return &resourcev1.DeviceClass{} }, map[string]any{"": deviceclass.Strategy}},
		{func() Object { return &resourcev1.ResourceClaim{} }, map[string]any{"": claims, "status": resourceclaim.NewStatusStrategy(claims)}},
		{func() Object { return &resourcev1.ResourceClaimTemplate{} }, map[string]any{"": resourceclaimtemplate.NewStrategy(nil)}},
		{func() Object { return &resourcev1.ResourceSlice{} }, map[string]any{"": resourceslice.Strategy}},
		{func() Object { return &resourcev1beta1.DeviceClass{} }, map[string]any{"": deviceclass.Strategy}},
		{func() Object { return &resourcev1beta1.ResourceClaim{} }, map[string]any{"": claims, "status": resourceclaim.NewStatusStrategy(claims)}},
		{func() Object { return &resourcev1beta1.ResourceClaimTemplate{} }, map[string]any{"": resourceclaimtemplate.NewStrategy(nil)}},
		{func() Object { return &resourcev1beta1.ResourceSlice{} }, map[string]any{"": resourceslice.Strategy}},
		{func() Object { return &resourcev1beta2.DeviceClass{} }, map[string]any{"": deviceclass.Strategy}},
		{func() Object { return &resourcev1beta2.DeviceTaintRule{} }, map[string]any{"": devicetaintrule.Strategy, "status": devicetaintrule.StatusStrategy}},
		{func() Object { return &resourcev1beta2.ResourceClaim{} }, map[string]any{"": claims, "status": resourceclaim.NewStatusStrategy(claims)}},
		{func() Object { return &resourcev1beta2.ResourceClaimTemplate{} }, map[string]any{"": resourceclaimtemplate.NewStrategy(nil)}},
		{func() Object { return &resourcev1beta2.ResourceSlice{} }, map[string]any{"": resourceslice.Strategy}},
		{func() Object { return &resourcev1alpha3.DeviceTaintRule{} }, map[string]any{"": devicetaintrule.Strategy, "status": devicetaintrule.StatusStrategy}},
		{func() Object { return &resourcev1alpha3.ResourcePoolStatusRequest{} }, map[string]any{"": resourcepoolstatusrequest.Strategy, "status": resourcepoolstatusrequest.StatusStrategy}},
		{func() Object { return &schedulingv1.PriorityClass{} }, map[string]any{"": priorityclass.Strategy}},
		{func() Object { return &storagev1.CSIDriver{} }, map[string]any{"": csidriver.Strategy}},
		{func() Object { return &storagev1.CSINode{} }, map[string]any{"": csinode.Strategy}},
		{func() Object { return &storagev1.CSIStorageCapacity{} }, map[string]any{"": csistoragecapacity.Strategy}},
		{func() Object { return &storagev1.StorageClass{} }, map[string]any{"": storageclass.Strategy}},
		{func() Object { return &storagev1.VolumeAttachment{} }, map[string]any{"": volumeattachment.Strategy, "status": volumeattachment.StatusStrategy}},
		{func() Object { return &storagev1.VolumeAttributesClass{} }, map[string]any{"": volumeattributesclass.Strategy}},
		{func() Object { return &storagev1beta1.VolumeAttributesClass{} }, map[string]any{"": volumeattributesclass.Strategy}},
		{func() Object { return &admissionregistrationv1.MutatingAdmissionPolicy{} }, map[string]any{"": mutatingadmissionpolicy.NewStrategy(nil, nil)}},
		{func() Object { return &admissionregistrationv1beta1.MutatingAdmissionPolicy{} }, map[string]any{"": mutatingadmissionpolicy.NewStrategy(nil, nil)}},
		{func() Object { return &admissionregistrationv1alpha1.MutatingAdmissionPolicy{} }, map[string]any{"": mutatingadmissionpolicy.NewStrategy(nil, nil)}},
		{func() Object { return &admissionregistrationv1.MutatingAdmissionPolicyBinding{} }, map[string]any{"": mutatingadmissionpolicybinding.NewStrategy(nil, nil, nil)}},
		{func() Object { return &admissionregistrationv1beta1.MutatingAdmissionPolicyBinding{} }, map[string]any{"": mutatingadmissionpolicybinding.NewStrategy(nil, nil, nil)}},
		{func() Object { return &admissionregistrationv1alpha1.MutatingAdmissionPolicyBinding{} }, map[string]any{"": mutatingadmissionpolicybinding.NewStrategy(nil, nil, nil)}},
		{func() Object { return &admissionregistrationv1.MutatingWebhookConfiguration{} }, map[string]any{"": mutatingwebhookconfiguration.Strategy}},
		{func() Object { return &admissionregistrationv1.ValidatingWebhookConfiguration{} }, map[string]any{"": validatingwebhookconfiguration.Strategy}},
		{func() Object { return &admissionregistrationv1.ValidatingAdmissionPolicy{} }, map[string]any{"": policies, "status": validatingadmissionpolicy.NewStatusStrategy(policies)}},
		{func() Object { return &admissionregistrationv1.ValidatingAdmissionPolicyBinding{} }, map[string]any{"": validatingadmissionpolicybinding.NewStrategy(nil, nil, nil)}},
		{func() Object { return &apiregistrationv1.APIService{} }, map[string]any{"": apiservice.NewStrategy(legacyscheme.Scheme), "status": apiservice.NewStatusStrategy(legacyscheme.Scheme)}},
	}
}
