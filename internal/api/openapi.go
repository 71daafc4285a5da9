package api

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"k8s.io/apimachinery/pkg/runtime/schema"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
	generated "k8s.io/kubernetes/pkg/generated/openapi"
)

// openAPI serves the schemas. They are built by the first request that wants one (tens of milliseconds and megabytes)
// and then kept only compressed. Those of built-in kinds never change; see openapicustom.go for the others.
type openAPI struct {
	server *Server

	mu      sync.Mutex                  // guards the fields below
	changed <-chan struct{}             // of the routes that they are about
	v2      *openAPIDocument            // of everything
	v3      map[string]*openAPIDocument // by "api/v1", "apis/apps/v1"
	index   []byte
	etag    string // of index
	builtin builtinOpenAPI
	custom  customOpenAPI
}

// builtinOpenAPI is what is known of built-in kinds.
type builtinOpenAPI struct {
	v2 []byte                      // packed
	v3 map[string]*openAPIDocument // as in openAPI
}

// openAPIDocument is one document, compressed in both encodings.
type openAPIDocument struct {
	etag        string
	json, proto []byte                 // proto is made when first asked for
	build       func() ([]byte, error) // makes json when first asked for; nil if it is there
	toProto     func([]byte) ([]byte, error)
}

func newOpenAPI(s *Server) *openAPI { return &openAPI{server: s} }

// serve answers /openapi/v2, /openapi/v3 and the documents below it.
func (o *openAPI) serve(q *query, parts []string) int {
	version := ""
	if len(parts) >= 2 {
		version = parts[1]
	}
	if version != "v3" && (version != "v2" || len(parts) != 2) {
		return o.server.notFoundPath(q)
	}
	if version == "v3" && len(parts) == 2 {
		return o.serveIndex(q)
	}
	wantsProto, ok := openAPIFormat(q.accept(), version)
	if !ok {
		http.Error(q.w, "", http.StatusNotAcceptable)
		return http.StatusNotAcceptable
	}
	name := strings.Join(parts[2:], "/")
	document, packed, err := o.find(name, wantsProto)
	if err != nil {
		return o.server.crash(q, err)
	}
	if document == nil {
		return o.server.notFoundPath(q)
	}
	header := q.w.Header()
	if hash := q.r.URL.Query().Get("hash"); hash != "" && version == "v3" {
		if hash != document.etag {
			http.Redirect(q.w, q.r, "/openapi/v3/"+name+"?hash="+document.etag, http.StatusMovedPermanently)
			return http.StatusMovedPermanently
		}
		header.Set("Cache-Control", "public, immutable")
		header.Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	header.Set("Content-Type", typeJSON)
	if wantsProto {
		header.Set("Content-Type", "application/com.github.proto-openapi.spec."+version+".v1.0+protobuf")
	}
	return o.send(q, document.etag, packed)
}

// find returns a document, "" being v2, and its packed bytes; nil if there is none. It builds what is missing.
func (o *openAPI) find(name string, wantsProto bool) (*openAPIDocument, []byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refreshLocked()
	document := o.v2
	switch {
	case name != "":
		if err := o.buildV3Locked(); err != nil {
			return nil, nil, err
		}
		if document = o.v3[name]; document == nil {
			return nil, nil, nil
		}
	case document == nil:
		built, err := o.buildV2Locked()
		if err != nil {
			return nil, nil, err
		}
		o.v2, document = built, built
	}
	if document.json == nil {
		data, err := document.build()
		if err != nil {
			return nil, nil, err
		}
		document.json = data
	}
	if !wantsProto {
		return document, document.json, nil
	}
	if err := document.encodeProto(); err != nil {
		return nil, nil, err
	}
	return document, document.proto, nil
}

// serveIndex answers the list of v3 documents.
func (o *openAPI) serveIndex(q *query) int {
	o.mu.Lock()
	o.refreshLocked()
	err := o.buildV3Locked()
	index, etag := o.index, o.etag
	o.mu.Unlock()
	if err != nil {
		return o.server.crash(q, err)
	}
	q.w.Header().Set("Etag", `"`+etag+`"`)
	if q.r.Header.Get("If-None-Match") == `"`+etag+`"` {
		q.w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	return o.server.send(q, output{}, http.StatusOK, index)
}

// send sends a packed document, unpacked for a client that does not take gzip.
func (o *openAPI) send(q *query, etag string, packed []byte) int {
	header := q.w.Header()
	header.Set("Etag", `"`+etag+`"`)
	header.Add("Vary", "Accept")
	if q.r.Header.Get("If-None-Match") == `"`+etag+`"` {
		q.w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	if acceptsGzip(q.r.Header) {
		header.Set("Content-Encoding", "gzip")
		header.Add("Vary", "Accept-Encoding")
		return o.server.plain(q, packed)
	}
	data, err := unpack(packed)
	if err != nil {
		return o.server.crash(q, err)
	}
	return o.server.plain(q, data)
}

// openAPIFormat reads an Accept header; ok is false if neither encoding will do.
func openAPIFormat(accept, version string) (proto, ok bool) {
	if accept == "" {
		return false, true
	}
	for _, c := range parseAccept(accept) {
		switch c.mediaType {
		case typeJSON, "*/*", "application/*":
			return false, true
		case "application/com.github.proto-openapi.spec." + version + "@v1.0+protobuf",
			"application/com.github.proto-openapi.spec." + version + ".v1.0+protobuf":
			return true, true
		}
	}
	return false, false
}

// encodeProto makes the protobuf form once.
func (d *openAPIDocument) encodeProto() error {
	if d.proto != nil {
		return nil
	}
	data, err := unpack(d.json)
	if err != nil {
		return err
	}
	if data, err = d.toProto(data); err != nil {
		return fmt.Errorf("encoding OpenAPI as protobuf: %w", err)
	}
	d.proto, err = pack(data)
	return err
}

func newOpenAPIDocument(document any, toProto func([]byte) ([]byte, error)) (*openAPIDocument, error) {
	data, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encoding OpenAPI: %w", err)
	}
	return packedDocument(data, toProto)
}

func packedDocument(data []byte, toProto func([]byte) ([]byte, error)) (*openAPIDocument, error) {
	sum := sha512.Sum512(data)
	packed, err := pack(data)
	if err != nil {
		return nil, err
	}
	return &openAPIDocument{etag: strings.ToUpper(hex.EncodeToString(sum[:])), json: packed, toProto: toProto}, nil
}

func pack(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(out.Bytes()), nil
}

func unpack(data []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// title is what the documents call themselves.
func (o *openAPI) title() *spec.Info {
	return &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: o.server.opts.Version.GitVersion}}
}

// refreshLocked forgets what was built of kinds that are not served any more. o.mu is held.
func (o *openAPI) refreshLocked() {
	if changed := o.server.routes().changed; o.changed != changed {
		o.changed, o.v2, o.v3 = changed, nil, nil
	}
}

// buildV2Locked makes the one Swagger document. o.mu is held.
func (o *openAPI) buildV2Locked() (*openAPIDocument, error) {
	if o.builtin.v2 == nil {
		data, err := o.buildBuiltinV2()
		if err != nil {
			return nil, err
		}
		if o.builtin.v2, err = pack(data); err != nil {
			return nil, err
		}
	}
	data, err := unpack(o.builtin.v2)
	if err != nil {
		return nil, err
	}
	if data, err = o.addCustomLocked(data); err != nil {
		return nil, err
	}
	return packedDocument(data, handler.ToProtoBinary)
}

func (o *openAPI) buildBuiltinV2() ([]byte, error) {
	namer := openapinamer.NewDefinitionNamer(o.server.opts.Registry.Scheme())
	config := &common.Config{
		ProtocolList: []string{"https"}, Info: o.title(),
		DefaultResponse:                &spec.Response{ResponseProps: spec.ResponseProps{Description: "Default Response."}},
		CommonResponses:                map[int]spec.Response{http.StatusUnauthorized: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}}},
		GetOperationIDAndTagsFromRoute: operationName,
		GetDefinitionName:              namer.GetDefinitionName,
		GetDefinitions:                 generated.GetOpenAPIDefinitions,
	}
	var containers []common.RouteContainer
	routes := o.routes()
	for _, name := range slices.Sorted(maps.Keys(routes)) {
		containers = append(containers, routes[name])
	}
	swagger, err := builder.BuildOpenAPISpecFromRoutes(containers, config)
	if err != nil {
		return nil, fmt.Errorf("building OpenAPI v2: %w", err)
	}
	swagger.Definitions = handler.PruneDefaults(swagger.Definitions)
	return json.Marshal(swagger)
}

// buildV3Locked lists the documents of all group versions, and builds those of built-in kinds, once.
// o.mu is held.
func (o *openAPI) buildV3Locked() error {
	if o.v3 != nil {
		return nil
	}
	routes := o.server.routes()
	if o.builtin.v3 == nil {
		documents, err := o.buildBuiltinV3()
		if err != nil {
			return err
		}
		o.builtin.v3 = documents
	}
	documents := maps.Clone(o.builtin.v3)
	for name, document := range o.customV3Locked(routes) {
		if documents[name] == nil {
			documents[name] = document
		}
	}
	type indexEntry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := make(map[string]indexEntry, len(documents))
	for name, document := range documents {
		paths[name] = indexEntry{"/openapi/v3/" + name + "?hash=" + document.etag}
	}
	index, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return fmt.Errorf("encoding the OpenAPI index: %w", err)
	}
	sum := sha512.Sum512(index)
	o.v3, o.index, o.etag = documents, index, strings.ToUpper(hex.EncodeToString(sum[:]))
	return nil
}

func (o *openAPI) buildBuiltinV3() (map[string]*openAPIDocument, error) {
	namer := openapinamer.NewDefinitionNamer(o.server.opts.Registry.Scheme())
	definitions := generated.GetOpenAPIDefinitions(func(name string) spec.Ref {
		defName, _ := namer.GetDefinitionName(name)
		return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(defName))
	})
	documents := map[string]*openAPIDocument{}
	for name, routes := range o.routes() {
		document, err := o.build(name, routes, namer, definitions)
		if err != nil {
			return nil, err
		}
		documents[name] = document
	}
	return documents, nil
}

// openAPIName is the name of the document of a group version.
func openAPIName(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.String()
}

// routes are all built-in paths by the name of their v3 document: "api/v1", "apis/apps/v1", "version".
func (o *openAPI) routes() map[string]*container {
	routes := o.server.otherRoutes()
	for gv := range o.server.routes().builtinVersions() {
		c := o.server.routesOf(gv)
		routes[strings.TrimPrefix(c.root, "/")] = c
	}
	return routes
}

func (o *openAPI) build(name string, routes *container, namer *openapinamer.DefinitionNamer, definitions map[string]common.OpenAPIDefinition) (*openAPIDocument, error) {
	config := &common.OpenAPIV3Config{
		Info:                           o.title(),
		DefaultResponse:                &spec3.Response{ResponseProps: spec3.ResponseProps{Description: "Default Response."}},
		CommonResponses:                map[int]*spec3.Response{http.StatusUnauthorized: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}}},
		GetOperationIDAndTagsFromRoute: operationName,
		GetDefinitionName:              namer.GetDefinitionName,
		Definitions:                    maps.Clone(definitions),
	}
	document, err := builder3.BuildOpenAPISpecFromRoutes([]common.RouteContainer{routes}, config)
	if err != nil {
		return nil, fmt.Errorf("building OpenAPI v3 of %s: %w", name, err)
	}
	return newOpenAPIDocument(document, handler3.ToV3ProtoBinary)
}
