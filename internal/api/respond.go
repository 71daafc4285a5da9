package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"sigs.k8s.io/yaml"
)

// statusKind() is how an error is written, whatever the group of the request.
func statusKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: "Status"}
}

// marshaler is what generated API types can do for protobuf.
type marshaler interface {
	Size() int
	Marshal() ([]byte, error)
}

// fail answers with err as a Status in the negotiated encoding and returns its code.
func (s *Server) fail(q *query, err error) int {
	if q.path.images {
		return s.failImages(q, err)
	}
	status := responsewriters.ErrorToAPIStatus(err)
	code := int(status.Code)
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		q.w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	if code == http.StatusNoContent {
		q.auditResponse(status, statusKind())
		q.w.WriteHeader(code)
		return code
	}
	out, ok := s.accepts.negotiate(q.r.Header.Get("Accept"), classPlain)
	if !ok { // what cannot be negotiated must not hide the error
		return s.writeObject(q, output{pretty: true}, code, statusKind(), status)
	}
	out.pretty = wantsPretty(&out, q.r)
	return s.writeObject(q, out, code, statusKind(), status)
}

// writeObject encodes object, of the given kind, and sends it.
func (s *Server) writeObject(q *query, out output, code int, kind schema.GroupVersionKind, object runtime.Object) int {
	q.auditResponse(object, kind)
	if out.format == formatProto {
		if m, ok := object.(marshaler); ok {
			raw, err := m.Marshal()
			if err != nil {
				return s.crash(q, fmt.Errorf("encoding %s: %w", kind.Kind, err))
			}
			return s.send(q, out, code, wrapProto(protoHead(kind), raw))
		}
		out.format = formatJSON
	}
	object.GetObjectKind().SetGroupVersionKind(kind)
	data, err := json.Marshal(object)
	if err != nil {
		return s.crash(q, fmt.Errorf("encoding %s: %w", kind.Kind, err))
	}
	return s.sendJSON(q, out, code, data)
}

// sendJSON sends a JSON document in the text format that the client wants.
func (s *Server) sendJSON(q *query, out output, code int, data []byte) int {
	switch {
	case out.format == formatYAML:
		text, err := yaml.JSONToYAML(data)
		if err != nil {
			return s.crash(q, fmt.Errorf("turning JSON into YAML: %w", err))
		}
		return s.send(q, out, code, text)
	case out.pretty:
		var indented bytes.Buffer
		if err := json.Indent(&indented, data, "", "  "); err == nil {
			return s.send(q, out, code, indented.Bytes())
		}
	}
	q.w.Header()["Content-Type"] = s.shared.json
	return s.body(q, code, data, s.shared.newline)
}

// send sends bytes that are complete.
func (s *Server) send(q *query, out output, code int, data []byte) int {
	switch out.format {
	case formatProto:
		q.w.Header()["Content-Type"] = s.shared.proto
	case formatYAML:
		q.w.Header()["Content-Type"] = s.shared.yaml
	case formatJSON:
		q.w.Header()["Content-Type"] = s.shared.json
	}
	return s.body(q, code, data)
}

// shared is what every answer needs and none changes, so that it is not made each time.
type shared struct {
	json, yaml, proto, private []string // header values
	newline, comma             []byte
}

func newShared() *shared {
	return &shared{
		json: []string{typeJSON}, yaml: []string{typeYAML}, proto: []string{typeProto}, private: []string{"no-cache, private"},
		newline: []byte{'\n'}, comma: []byte{','},
	}
}

// body writes the parts, compressed if the client takes that and they are large.
func (s *Server) body(q *query, code int, parts ...[]byte) int {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	if size > bufferedAnswer {
		defer limitWrites(q.w).after(s.answerLimit(size))()
	}
	if size > gzipThreshold && acceptsGzip(q.r.Header) {
		s.pools.writeGzip(q.w, code, parts)
		return code
	}
	q.w.WriteHeader(code)
	for _, part := range parts {
		_, _ = q.w.Write(part)
	}
	return code
}

// crash answers an error that is the server's own fault and logs it.
func (s *Server) crash(q *query, err error) int {
	s.opts.Log.Error("answering a request", "path", q.path.Path, "error", err)
	http.Error(q.w, fmt.Sprintf("Internal Server Error: %q: %v", q.r.RequestURI, err), http.StatusInternalServerError)
	return http.StatusInternalServerError
}

// notFoundPath is upstream's answer to a path that nothing serves.
func (s *Server) notFoundPath(q *query) int {
	http.NotFound(q.w, q.r)
	return http.StatusNotFound
}

// errNoRoute is the answer inside a group version that is served.
func errNoRoute() error {
	return apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "404: Page Not Found", 0, false)
}

// errNoMethod is the answer to a verb that the path does not have.
func errNoMethod() error {
	return apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", schema.GroupResource{}, "", "405: Method Not Allowed", 0, false)
}

// success is the Status of a delete that is done.
func success(details *metav1.StatusDetails) *metav1.Status {
	return &metav1.Status{Status: metav1.StatusSuccess, Details: details}
}
