package addon

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// Ejected is an addon for a cluster that knows nothing of Gantry.
type Ejected struct {
	Objects []client.Object // without the Secret
	Secret  string          // its name
	Keys    []string        // of the Secret
}

// Eject returns an application's addons. claims are the volumes that it has now, which tell the version of the data; settings are the
// platform's. The objects belong to nobody.
func Eject(app *v1alpha1.App, addons map[string]v1alpha1.Addon, claims []corev1.PersistentVolumeClaim, settings map[string]string) (map[string]Ejected, error) {
	v := &view{app: app, wanted: addons, settings: settings, owned: map[ownedKey]client.Object{}, hook: true}
	for i := range claims {
		v.owned[ownedKey{"PersistentVolumeClaim", claims[i].Name}] = &claims[i]
	}
	out := map[string]Ejected{}
	for _, name := range slices.Sorted(maps.Keys(addons)) {
		in, err := v.input(name)
		if err != nil {
			return nil, fmt.Errorf("addon %s: %w", name, errors.New(err.Error()))
		}
		in.stopped = false
		ejected := Ejected{Secret: in.object(), Keys: slices.Sorted(maps.Keys(in.credentials))}
		for _, object := range in.objects() {
			if _, secret := object.(*corev1.Secret); secret {
				continue
			}
			object.SetOwnerReferences(nil)
			if set, ok := object.(*appsv1.StatefulSet); ok {
				delete(set.Spec.Template.Annotations, annotationPassword) // it is of a password that was made up here
			}
			ejected.Objects = append(ejected.Objects, object)
		}
		out[name] = ejected
	}
	return out, nil
}
