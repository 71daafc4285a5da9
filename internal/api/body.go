package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/warning"
)

// decoders read bodies into versioned types.
type decoders struct {
	json, strictJSON, yaml, strictYAML, proto runtime.Decoder
}

func newDecoders(scheme *runtime.Scheme) decoders {
	text := func(yaml, strict bool) runtime.Decoder {
		return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, scheme, scheme,
			jsonserializer.SerializerOptions{Yaml: yaml, Strict: strict})
	}
	return decoders{
		json: text(false, false), strictJSON: text(false, true), yaml: text(true, false), strictYAML: text(true, true),
		proto: protobuf.NewSerializer(scheme, scheme),
	}
}

// pick returns the decoder of a format; strict ones report unknown and duplicate fields.
func (d *decoders) pick(f format, strict bool) runtime.Decoder {
	switch {
	case f == formatProto:
		return d.proto
	case f == formatYAML && strict:
		return d.strictYAML
	case f == formatYAML:
		return d.yaml
	case strict:
		return d.strictJSON
	}
	return d.json
}

// readBody reads the whole body, up to the limit.
func (s *Server) readBody(q *query) ([]byte, error) {
	r := q.r
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	limit := s.opts.MaxBodyBytes
	tooLarge := apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", limit))
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	// A body that trickles in holds a seat; a read that waits for it sees no context, only a deadline.
	defer limitReads(q.w).after(s.opts.RequestTimeout)()
	if r.ContentLength > 0 && r.ContentLength <= trustedLength {
		data := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, data); err != nil {
			return nil, bodyError(err)
		}
		return data, nil
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, limit+1)) // memory grows with what has come, not with what is promised
	if err != nil {
		return nil, bodyError(err)
	}
	if r.ContentLength > 0 && int64(len(data)) < r.ContentLength {
		return nil, bodyError(io.ErrUnexpectedEOF)
	}
	if int64(len(data)) > limit {
		return nil, tooLarge
	}
	return data, nil
}

// trustedLength is how much memory a client gets by promising a body of that length.
const trustedLength = 64 << 10

// bodyError is the answer to a body that ended early or did not come in time.
func bodyError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return apierrors.NewTimeoutError("the request body did not come in time", 0)
	}
	return apierrors.NewBadRequest(fmt.Sprintf("reading the request body: %v", err))
}

// decodeOwn reads body into a new object of the endpoint's kind.
func (s *Server) decodeOwn(q *query, ep *endpoint, body []byte, directive string) (runtime.Object, error) {
	custom := ep.Custom()
	if custom == nil {
		object := ep.New()
		return object, s.decodeObject(q, body, object, ep.Kind, directive)
	}
	bodyType, err := bodyFormat(q.r.Header.Get("Content-Type"))
	if err != nil || bodyType == formatProto {
		return nil, negotiation.NewUnsupportedMediaTypeError([]string{typeJSON, typeYAML})
	}
	object, problems, err := custom.Decode(body, bodyType == formatYAML, directive != metav1.FieldValidationIgnore)
	if err != nil {
		return nil, decodeError(err, ep.Kind, nil, body)
	}
	found := object.GetObjectKind().GroupVersionKind()
	if len(problems) > 0 && directive == metav1.FieldValidationStrict {
		return nil, decodeError(runtime.NewStrictDecodingError(problems), ep.Kind, &found, body)
	}
	for _, problem := range problems {
		warning.AddWarning(q.context(), "", problem.Error())
	}
	return object, checkKind(found, ep.Kind, body)
}

// checkKind checks that what was found in the body is what the path is about.
func checkKind(found, kind schema.GroupVersionKind, body []byte) error {
	switch {
	case found == kind:
		return nil
	case found.GroupVersion() != kind.GroupVersion():
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)",
			found.GroupVersion(), kind.GroupVersion()))
	}
	return decodeError(errors.New("the kind does not match"), kind, &found, body)
}

// decodeObject reads body into object, which is of kind. Unknown and duplicate fields are an error, a warning or
// nothing, as directive says.
func (s *Server) decodeObject(q *query, body []byte, object runtime.Object, kind schema.GroupVersionKind, directive string) error {
	bodyType, err := bodyFormat(q.r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	strict := directive != metav1.FieldValidationIgnore
	decoded, found, err := s.decoders.pick(bodyType, strict).Decode(body, &kind, object)
	if err != nil {
		strictError, isStrict := runtime.AsStrictDecodingError(err)
		if !isStrict || decoded == nil || directive == metav1.FieldValidationStrict {
			return decodeError(err, kind, found, body)
		}
		for _, problem := range strictError.Errors() {
			warning.AddWarning(q.context(), "", problem.Error())
		}
	}
	if found != nil {
		if err := checkKind(*found, kind, body); err != nil {
			return err
		}
	}
	if decoded != object {
		return decodeError(fmt.Errorf("unable to decode into %T", object), kind, found, body)
	}
	return nil
}

// decodeError words a body that cannot be read as kind.
func decodeError(err error, kind schema.GroupVersionKind, found *schema.GroupVersionKind, body []byte) error {
	if found != nil && found.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", found.Kind, found.Version, kind.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", kind.Kind, err, summary(body)))
}

// summaryBytes is how much of a body an error shows.
const summaryBytes = 30

func summary(body []byte) string {
	switch {
	case len(body) == 0:
		return "<empty>"
	case body[0] == '{' && len(body) > summaryBytes:
		return string(body[:summaryBytes]) + " ..."
	case body[0] == '{':
		return string(body)
	case len(body) > summaryBytes:
		return fmt.Sprintf("%x", body[:summaryBytes]) + " ..."
	}
	return fmt.Sprintf("%x", body)
}
