package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/store"
)

// maxPatchOperations is the limit of one JSON patch (apiserver, maxJSONPatchOperations).
const maxPatchOperations = 10000

// Patch changes the object, or what the subresource shows of it. created is true when a
// server-side apply made it.
func (r *Resource) Patch(ctx context.Context, namespace, name, sub string, req PatchRequest) (entry *store.Entry, created bool, err error) {
	ctx = r.requestContext(ctx, namespace, "patch", name, sub)
	opts := &metav1.UpdateOptions{DryRun: req.Options.DryRun, FieldManager: req.Options.FieldManager, FieldValidation: req.Options.FieldValidation}
	s := r.subs[sub]
	if s != nil && s.toParent != nil {
		empty := func() store.Object { return s.newObj().(store.Object) }
		p := patcher{resource: r, manager: r.subManager(s), kind: s.info.Kind, empty: empty, req: req, ctx: ctx}
		entry, err := r.storeMapped(ctx, namespace, name, s, opts, p.apply)
		return entry, false, err
	}
	p := patcher{resource: r, manager: r.managers[sub], kind: r.Kind, empty: r.def.newObj, req: req, ctx: ctx}
	return r.updateView(ctx, updating{
		namespace: namespace, name: name, sub: sub, strategy: r.updateStrategy(sub), opts: opts,
		forceCreate: req.Type == types.ApplyPatchType && sub == "",
		apply: func(current store.Object) (store.Object, error) {
			next, err := p.apply(current)
			if err != nil || current == nil {
				return next, err
			}
			if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(namespace, r.Namespaced), next); err != nil {
				return nil, err
			}
			return next, checkName(next, namespace, name)
		},
	})
}

// patcher applies one patch to whatever the object is at the moment.
type patcher struct {
	resource *Resource
	manager  *fieldManager
	kind     schema.GroupVersionKind
	empty    func() store.Object
	req      PatchRequest
	ctx      context.Context //nolint:containedctx // of one request; it carries the recorder of warnings
}

// apply returns the patched object with its managed fields; current is nil when there is none.
func (p *patcher) apply(current store.Object) (store.Object, error) {
	if p.req.Type == types.ApplyPatchType {
		return p.serverSideApply(current)
	}
	if current == nil {
		return nil, apierrors.NewNotFound(p.resource.Resource.GroupResource(), "")
	}
	var next store.Object
	var err error
	switch p.req.Type {
	case types.StrategicMergePatchType:
		if p.isCustom() {
			return nil, unknownPatch(p.resource, p.req.Type)
		}
		next, err = p.strategic(current)
	case types.JSONPatchType, types.MergePatchType:
		next, err = p.document(current)
	default:
		err = unknownPatch(p.resource, p.req.Type)
	}
	if err != nil {
		return nil, err
	}
	next.GetObjectKind().SetGroupVersionKind(p.kind)
	p.setDefaults(next)
	if p.kind == p.resource.Kind {
		if next, err = p.resource.normalize(next); err != nil {
			return nil, err
		}
	}
	return p.manager.update(current, next, p.req.Manager)
}

func unknownPatch(r *Resource, kind types.PatchType) error {
	return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", r.Resource.GroupResource(), "",
		fmt.Sprintf("patch type %s is not known", kind), 0, true)
}

// isCustom reports whether a custom resource itself is patched, not a Scale of it.
func (p *patcher) isCustom() bool { return p.resource.def.custom != nil && p.kind == p.resource.Kind }

func (p *patcher) setDefaults(obj store.Object) {
	if p.isCustom() {
		p.resource.setDefaults(obj)
		return
	}
	legacyscheme.Scheme.Default(obj)
}

// decode reads the patched document; strictErrs are its unknown and duplicate fields.
func (p *patcher) decode(patched []byte) (next store.Object, strictErrs []error, err error) {
	if p.isCustom() {
		return p.resource.def.custom.Decode(patched, false, p.strict())
	}
	next = p.empty()
	strictErrs, err = kjson.UnmarshalStrict(patched, next)
	return next, strictErrs, err
}

// strict reports whether unknown and duplicate fields matter.
func (p *patcher) strict() bool { return p.req.Options.FieldValidation != metav1.FieldValidationIgnore }

// complain warns of strict decoding errors, or turns them into an error where the client
// asked for that.
func (p *patcher) complain(errs []error, fatal func(error) error) error {
	if len(errs) == 0 {
		return nil
	}
	if p.req.Options.FieldValidation != metav1.FieldValidationStrict {
		for _, err := range errs {
			warning.AddWarning(p.ctx, "", err.Error())
		}
		return nil
	}
	return fatal(runtime.NewStrictDecodingError(errs))
}

// invalidPatch is the answer to a patch whose result is no object of the kind.
func invalidPatch(result []byte) func(error) error {
	return func(err error) error {
		return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), string(result), err.Error())})
	}
}

// document applies a JSON patch or a JSON merge patch.
func (p *patcher) document(current store.Object) (store.Object, error) {
	if p.req.Type == types.MergePatchType && p.kind == p.resource.Kind && !p.isCustom() {
		if next, ok := metadataPatch(current, p.req.Data); ok {
			return next, nil
		}
	}
	before, err := p.encoded(current)
	if err != nil {
		return nil, err
	}
	var patched []byte
	var strictErrs []error
	if p.req.Type == types.JSONPatchType {
		patched, strictErrs, err = p.jsonPatch(before)
	} else {
		patched, strictErrs, err = p.mergePatch(before)
	}
	if err != nil {
		return nil, err
	}
	next, decodeErrs, err := p.decode(patched)
	if err != nil {
		return nil, invalidPatch(patched)(err)
	}
	if p.strict() {
		if err := p.complain(append(strictErrs, decodeErrs...), invalidPatch(patched)); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// encoded is the JSON of current: the bytes that are kept of it, unless it is a view of another
// object.
func (p *patcher) encoded(current store.Object) ([]byte, error) {
	r := p.resource
	entry, err := r.store.Get(r.def.stored.Name, r.def.stored.Key(current.GetNamespace(), current.GetName()))
	if err == nil {
		entry, err = r.view(entry)
	}
	if err == nil && entry.Object == current {
		return entry.JSON()
	}
	data, err := json.Marshal(current)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", current, err)
	}
	return data, nil
}

func (p *patcher) jsonPatch(before []byte) ([]byte, []error, error) {
	var strictErrs []error
	if p.strict() {
		var operations []struct {
			Op    string `json:"op"`
			Path  string `json:"path"`
			From  string `json:"from"`
			Value any    `json:"value"`
		}
		var err error
		if strictErrs, err = kjson.UnmarshalStrict(p.req.Data, &operations); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for i, e := range strictErrs {
			strictErrs[i] = fmt.Errorf("json patch %w", e)
		}
	}
	patch, err := jsonpatch.DecodePatch(p.req.Data)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(patch) > maxPatchOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(
			fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(patch)))
	}
	patched, err := applyJSONPatch(patch, before)
	if err != nil {
		return nil, nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return patched, strictErrs, nil
}

func (p *patcher) mergePatch(before []byte) ([]byte, []error, error) {
	var strictErrs []error
	if p.strict() {
		var err error
		if strictErrs, err = kjson.UnmarshalStrict(p.req.Data, &map[string]any{}); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	patched, err := mergePatch(before, p.req.Data)
	if errors.Is(err, jsonpatch.ErrBadJSONPatch) {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return patched, strictErrs, err
}

// strategic applies a strategic merge patch.
func (p *patcher) strategic(current store.Object) (store.Object, error) {
	if next, ok := finalizerPatch(current, p.req.Data); ok {
		return next, nil
	}
	before, err := runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	if err != nil {
		return nil, fmt.Errorf("reading %T: %w", current, err)
	}
	patch := make(map[string]any)
	var strictErrs []error
	if p.strict() {
		strictErrs, err = kjson.UnmarshalStrict(p.req.Data, &patch)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.req.Data, &patch)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	next := p.empty()
	patched, err := strategicpatch.StrategicMergeMapPatch(before, patch, next)
	if err != nil {
		return nil, strategicError(err)
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(patched, next, p.strict())
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		strictErrs, err = append(strictErrs, strict.Errors()...), nil
	}
	fatal := invalidPatch(fmt.Append(nil, patch))
	if err != nil {
		return nil, fatal(err)
	}
	return next, p.complain(strictErrs, fatal)
}

func strategicError(err error) error {
	switch {
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
		return apierrors.NewBadRequest(err.Error())
	}
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}

// serverSideApply merges an applied configuration.
func (p *patcher) serverSideApply(current store.Object) (store.Object, error) {
	document, plain := plainJSON(p.req.Data)
	if !plain {
		data, err := yaml.YAMLToJSON(p.req.Data)
		if err == nil {
			err = utiljson.Unmarshal(data, &document) // whole numbers stay such
		}
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
		}
	}
	config := &unstructured.Unstructured{Object: document}
	live := current
	if live == nil {
		live = p.empty()
	}
	force := p.req.Options.Force != nil && *p.req.Options.Force
	next, err := p.manager.apply(live, config, p.req.Manager, force)
	if err != nil {
		return nil, err
	}
	if p.strict() && !plain { // plain JSON has no key twice
		if err := yaml.UnmarshalStrict(p.req.Data, &map[string]any{}); err != nil {
			err = p.complain([]error{err}, func(error) error {
				return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding YAML: %v", err))
			})
			if err != nil {
				return nil, err
			}
		}
	}
	next.GetObjectKind().SetGroupVersionKind(p.kind)
	p.setDefaults(next)
	return next, nil
}
