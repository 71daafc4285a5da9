package api

import (
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gantry.dev/gantry/internal/api/registry"
)

// decodeQuery reads the parameters into an options object as upstream does. Most requests have none.
func decodeQuery(rawQuery string, into runtime.Object) error {
	if rawQuery == "" {
		return nil
	}
	values, err := url.ParseQuery(rawQuery)
	if err != nil && len(values) == 0 {
		return apierrors.NewBadRequest(err.Error())
	}
	if err := internalscheme.ParameterCodec.DecodeParameters(values, metav1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

// invalidOptions is the 422 for options of the named kind.
func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

// listQuery is what a list, watch or deletecollection selects.
type listQuery struct {
	registry.ListOptions
	fields  fields.Selector // the same as Fields, for refineVerb
	watch   bool
	timeout time.Duration
}

// parseList reads the query of a list; err is the answer if it cannot be read.
func parseList(rawQuery string) (listQuery, error) {
	if rawQuery == "" {
		return listQuery{}, nil
	}
	var opts internalversion.ListOptions
	if err := decodeQuery(rawQuery, &opts); err != nil {
		return listQuery{watch: looksLikeWatch(rawQuery)}, err
	}
	internalversion.SetListOptionsDefaults(&opts, true)
	out := listQuery{watch: opts.Watch, fields: opts.FieldSelector, ListOptions: registry.ListOptions{
		Labels: opts.LabelSelector, Fields: opts.FieldSelector, Revision: opts.ResourceVersion, Match: opts.ResourceVersionMatch,
		Limit: opts.Limit, Continue: opts.Continue, SendInitialEvents: opts.SendInitialEvents, Bookmarks: opts.AllowWatchBookmarks,
	}}
	if opts.TimeoutSeconds != nil {
		out.timeout = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	return out, invalidOptions("ListOptions", internalvalidation.ValidateListOptions(&opts, true))
}

// looksLikeWatch decides whether a query that cannot be read asks for a watch, for authorization.
func looksLikeWatch(rawQuery string) bool {
	values, _ := url.ParseQuery(rawQuery)
	watch := values["watch"]
	if len(watch) == 0 {
		return false
	}
	value := strings.ToLower(watch[0])
	return value != "false" && value != "0"
}

// named narrows a list to one object, as a watch on an object's path means it.
func (l *listQuery) named(name string) error {
	if l.fields != nil && !l.fields.Empty() {
		if selected, ok := l.fields.RequiresExactMatch("metadata.name"); !ok || selected != name {
			return apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
		return nil
	}
	l.Fields = fields.OneTermEqualSelector("metadata.name", name)
	return nil
}

func parseGet(rawQuery string) (metav1.GetOptions, error) {
	var opts metav1.GetOptions
	return opts, decodeQuery(rawQuery, &opts)
}

func parseCreate(rawQuery string) (*metav1.CreateOptions, error) {
	opts := &metav1.CreateOptions{}
	if err := decodeQuery(rawQuery, opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("CreateOptions", validation.ValidateCreateOptions(opts))
}

func parseUpdate(rawQuery string) (*metav1.UpdateOptions, error) {
	opts := &metav1.UpdateOptions{}
	if err := decodeQuery(rawQuery, opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("UpdateOptions", validation.ValidateUpdateOptions(opts))
}

func parsePatch(rawQuery string, kind types.PatchType) (*metav1.PatchOptions, error) {
	opts := &metav1.PatchOptions{}
	if err := decodeQuery(rawQuery, opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("PatchOptions", validation.ValidatePatchOptions(opts, kind))
}

// parseDelete reads options from the body or, if that is empty, from the query.
func parseDelete(rawQuery string, body []byte, contentType string) (*metav1.DeleteOptions, error) {
	opts := &metav1.DeleteOptions{}
	if len(body) == 0 {
		if err := decodeQuery(rawQuery, opts); err != nil {
			return nil, err
		}
		return opts, invalidOptions("DeleteOptions", validation.ValidateDeleteOptions(opts))
	}
	bodyType, err := bodyFormat(contentType)
	if err != nil {
		return nil, err
	}
	media := map[format]string{formatJSON: typeJSON, formatYAML: typeYAML, formatProto: typeProto}[bodyType]
	info, ok := runtime.SerializerInfoForMediaType(internalscheme.Codecs.SupportedMediaTypes(), media)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("DeleteOptions cannot be read as %s", media))
	}
	kind := metav1.SchemeGroupVersion.WithKind("DeleteOptions")
	decoded, _, err := internalscheme.Codecs.DecoderToVersion(info.Serializer, kind.GroupVersion()).Decode(body, &kind, opts)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if decoded != runtime.Object(opts) {
		return nil, apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
	}
	return opts, invalidOptions("DeleteOptions", validation.ValidateDeleteOptions(opts))
}

// fieldManager is the manager that the options name, else the program in the user agent.
func fieldManager(named, userAgent string) string {
	if named != "" {
		return named
	}
	program, _, _ := strings.Cut(userAgent, "/")
	plain := len(program) <= validation.FieldManagerMaxLength
	for i := 0; plain && i < len(program); i++ {
		plain = program[i] >= ' ' && program[i] < 0x7f
	}
	if plain {
		return program
	}
	var out strings.Builder
	for _, r := range program {
		if !unicode.IsPrint(r) {
			continue
		}
		if out.Len()+utf8.RuneLen(r) > validation.FieldManagerMaxLength {
			break
		}
		out.WriteRune(r)
	}
	return out.String()
}

// askedTimeout is the client's timeout parameter, 0 if it has none that can be read.
func askedTimeout(rawQuery string) time.Duration {
	if !strings.Contains(rawQuery, "timeout=") {
		return 0
	}
	values, _ := url.ParseQuery(rawQuery)
	limit, err := time.ParseDuration(values.Get("timeout"))
	if err != nil {
		return 0
	}
	return limit
}
