package admission

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/batch"
	"k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/apis/coordination"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/resource"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	"k8s.io/kubernetes/pkg/apis/storage"
	certapproval "k8s.io/kubernetes/plugin/pkg/admission/certificates/approval"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/ctbattest"
	certsigning "k8s.io/kubernetes/plugin/pkg/admission/certificates/signing"
	certsubject "k8s.io/kubernetes/plugin/pkg/admission/certificates/subjectrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/gc"
	"k8s.io/kubernetes/plugin/pkg/admission/limitranger"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/nodedeclaredfeatures"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/nodetaint"
	"k8s.io/kubernetes/plugin/pkg/admission/podresize"
	"k8s.io/kubernetes/plugin/pkg/admission/podtopologylabels"
	podpriority "k8s.io/kubernetes/plugin/pkg/admission/priority"
	"k8s.io/kubernetes/plugin/pkg/admission/runtimeclass"
	"k8s.io/kubernetes/plugin/pkg/admission/security/podsecurity"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/persistentvolume/resize"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageclass/setdefault"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageobjectinuseprotection"

	"gantry.dev/gantry/internal/api/admission/quota"
)

// step is one plugin and when it is asked.
type step struct {
	name      string
	plugin    func() (admission.Interface, error) // the same each time; may build it at the first
	resources []schema.GroupResource              // nil is all
	unless    func(a admission.Attributes) bool   // says cheaply that the plugin has nothing to say; nil is never
}

func (s *step) skips(a admission.Attributes) bool { return s.unless != nil && s.unless(a) }

// steps lists the plugins in upstream's order (kubeapiserver/options/plugins.go). What is on
// there by default but waits for an alpha feature is left out: PodGroupProtection,
// PodGroupWorkloadExists, JobValidation.
func (c *Chain) steps(up *upstream, quotas *quota.Plugin) []*step {
	pods, claims := api.Resource("pods"), api.Resource("persistentvolumeclaims")
	requests := certificates.Resource("certificatesigningrequests")
	limits := c.view.Table(corev1.SchemeGroupVersion.WithResource("limitranges"))
	unlimited := func(admission.Attributes) bool { return limits.Empty() }
	on := func(resources ...schema.GroupResource) []schema.GroupResource { return resources }
	accounts := up.plugin(serviceaccount.PluginName)
	return []*step{
		{name: "NamespaceLifecycle", plugin: fixed(namespaceLifecycle{c.view})},
		{name: limitranger.PluginName, plugin: up.plugin(limitranger.PluginName), resources: on(pods, claims), unless: unlimited},
		{name: serviceaccount.PluginName, plugin: c.waitingForAccount(accounts), resources: on(pods)},
		{name: noderestriction.PluginName, plugin: up.plugin(noderestriction.PluginName), resources: agentResources(), unless: notFromNode},
		{name: nodetaint.PluginName, plugin: up.plugin(nodetaint.PluginName), resources: on(api.Resource("nodes"))},
		{name: podsecurity.PluginName, plugin: up.plugin(podsecurity.PluginName), resources: podResources()},
		{name: podpriority.PluginName, plugin: up.plugin(podpriority.PluginName),
			resources: on(pods, scheduling.Resource("priorityclasses"))},
		{name: "DefaultTolerationSeconds", plugin: fixed(c.tolerations), resources: on(pods)},
		{name: setdefault.PluginName, plugin: up.plugin(setdefault.PluginName), resources: on(claims)},
		{name: storageobjectinuseprotection.PluginName, plugin: up.plugin(storageobjectinuseprotection.PluginName),
			resources: on(claims, api.Resource("persistentvolumes"), storage.Resource("volumeattributesclasses"))},
		{name: gc.PluginName, plugin: up.plugin(gc.PluginName)},
		{name: resize.PluginName, plugin: up.plugin(resize.PluginName), resources: on(claims)},
		{name: runtimeclass.PluginName, plugin: up.plugin(runtimeclass.PluginName), resources: on(pods)},
		{name: certapproval.PluginName, plugin: up.plugin(certapproval.PluginName), resources: on(requests)},
		{name: certsigning.PluginName, plugin: up.plugin(certsigning.PluginName), resources: on(requests)},
		{name: ctbattest.PluginName, plugin: up.plugin(ctbattest.PluginName), resources: on(certificates.Resource("clustertrustbundles"))},
		{name: certsubject.PluginName, plugin: up.plugin(certsubject.PluginName), resources: on(requests)},
		{name: defaultingressclass.PluginName, plugin: up.plugin(defaultingressclass.PluginName), resources: on(networking.Resource("ingresses"))},
		{name: podtopologylabels.PluginName, plugin: up.plugin(podtopologylabels.PluginName), resources: on(pods)},
		{name: nodedeclaredfeatures.PluginName, plugin: up.plugin(nodedeclaredfeatures.PluginName), resources: on(pods)},
		{name: podresize.PluginName, plugin: up.plugin(podresize.PluginName), resources: on(pods)},
		{name: "MutatingAdmissionPolicy", plugin: fixed(mutatesBy{c.policies.Admit}), unless: func(admission.Attributes) bool { return !c.policies.Mutates() }},
		{name: "MutatingAdmissionWebhook", plugin: fixed(mutatesBy{c.hooks.Admit}), unless: func(admission.Attributes) bool { return !c.hooks.Mutates() }},
		{name: "ValidatingAdmissionPolicy", plugin: fixed(validatesBy{c.policies.Validate}), unless: func(admission.Attributes) bool { return !c.policies.Validates() }},
		{name: "ValidatingAdmissionWebhook", plugin: fixed(validatesBy{c.hooks.Validate}), unless: func(admission.Attributes) bool { return !c.hooks.Validates() }},
		{name: "ResourceQuota", plugin: fixed(quotas), unless: func(a admission.Attributes) bool { return quotas.Unlimited(a) }},
	}
}

// agentResources are those about which NodeRestriction has a say.
func agentResources() []schema.GroupResource {
	return []schema.GroupResource{
		api.Resource("pods"), api.Resource("nodes"), api.Resource("persistentvolumeclaims"), api.Resource("serviceaccounts"),
		coordination.Resource("leases"), storage.Resource("csinodes"), resource.Resource("resourceslices"),
		certificates.Resource("certificatesigningrequests"), certificates.Resource("podcertificaterequests"),
	}
}

// notFromNode reports that the user is certainly no node.
func notFromNode(a admission.Attributes) bool {
	u := a.GetUserInfo()
	return u == nil || !slices.Contains(u.GetGroups(), user.NodesGroup)
}

// podResources are those that PodSecurity looks at: pods, what holds pod templates, and
// namespaces, whose labels set the level.
func podResources() []schema.GroupResource {
	return []schema.GroupResource{
		api.Resource("pods"), api.Resource("namespaces"), api.Resource("replicationcontrollers"), api.Resource("podtemplates"),
		apps.Resource("replicasets"), apps.Resource("deployments"), apps.Resource("statefulsets"), apps.Resource("daemonsets"),
		batch.Resource("jobs"), batch.Resource("cronjobs"),
	}
}
