package admission

import (
	"context"
	"sync"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/compatibility"
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

	"gantry.dev/gantry/internal/api/admission/view"
)

// kubernetesVersion is the version whose behaviour the plugins show.
const kubernetesVersion = "1.36"

// upstream makes upstream's plugins when they are first asked.
type upstream struct {
	factories   *admission.Plugins
	initializer func() admission.PluginInitializer
}

func newUpstream(v *view.View, authz authorizer.Authorizer, stop <-chan struct{}) *upstream {
	up := &upstream{factories: admission.NewPlugins()}
	for _, register := range []func(*admission.Plugins){
		certapproval.Register, certsigning.Register, certsubject.Register, ctbattest.Register, defaultingressclass.Register, gc.Register,
		limitranger.Register, nodedeclaredfeatures.Register, noderestriction.Register, nodetaint.Register, podpriority.Register,
		podresize.Register, podsecurity.Register, podtopologylabels.Register, resize.Register, runtimeclass.Register,
		serviceaccount.Register, setdefault.Register, storageobjectinuseprotection.Register,
	} {
		register(up.factories)
	}
	up.initializer = sync.OnceValue(func() admission.PluginInitializer {
		version := compatibility.NewEffectiveVersionFromString(kubernetesVersion, "", "")
		return initializer.New(v.Clientset(), nil, v.Informers(), authz, utilfeature.DefaultFeatureGate, version, stop, v.Mapper())
	})
	return up
}

// plugin returns what makes the plugin of that name, once.
func (u *upstream) plugin(name string) func() (admission.Interface, error) {
	return sync.OnceValues(func() (admission.Interface, error) {
		return u.factories.InitPlugin(name, nil, u.initializer())
	})
}

// fixed gives a plugin that needs no building.
func fixed(p admission.Interface) func() (admission.Interface, error) {
	return func() (admission.Interface, error) { return p, nil }
}

// ask is one half of a plugin.
type ask func(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error

// mutatesBy and validatesBy are the two halves; they look at the operation themselves.
type (
	mutatesBy   struct{ ask }
	validatesBy struct{ ask }
)

// Handles implements admission.Interface.
func (ask) Handles(admission.Operation) bool { return true }

// Admit implements admission.MutationInterface.
func (m mutatesBy) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	return m.ask(ctx, a, o)
}

// Validate implements admission.ValidationInterface.
func (v validatesBy) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	return v.ask(ctx, a, o)
}

// wrapOnce makes a plugin that covers another.
func wrapOnce(plugin func() (admission.Interface, error), cover func(admission.Interface) admission.Interface) func() (admission.Interface, error) {
	return sync.OnceValues(func() (admission.Interface, error) {
		p, err := plugin()
		if err != nil {
			return nil, err
		}
		return cover(p), nil
	})
}
