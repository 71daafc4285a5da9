package api

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	crdbuilder "k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"

	"gantry.dev/gantry/internal/api/registry"
)

// customOpenAPI is what was built of custom resources that are still served.
type customOpenAPI struct {
	v2 map[*registry.Resource][]byte       // packed
	v3 map[schema.GroupVersion]customEntry // documents that were asked for are kept
}

type customEntry struct {
	resources []*registry.Resource
	document  *openAPIDocument
}

// customResources are the custom resources in order of their names.
func (r *routes) customResources() []*registry.Resource {
	return slices.DeleteFunc(slices.Clone(r.resources), func(res *registry.Resource) bool { return res.Custom() == nil })
}

// customV3Locked lists the documents of group versions of custom resources. Their ETags follow from the
// definitions, so that nothing is built before it is asked for. o.mu is held.
func (o *openAPI) customV3Locked(routes *routes) map[string]*openAPIDocument {
	grouped := map[schema.GroupVersion][]*registry.Resource{}
	for _, res := range routes.customResources() {
		gv := res.Kind.GroupVersion()
		grouped[gv] = append(grouped[gv], res)
	}
	known := o.custom.v3
	o.custom.v3 = make(map[schema.GroupVersion]customEntry, len(grouped))
	out := make(map[string]*openAPIDocument, len(grouped))
	for gv, resources := range grouped {
		entry := known[gv]
		if !slices.Equal(entry.resources, resources) {
			entry = customEntry{resources, newCustomDocument(gv, resources)}
		}
		o.custom.v3[gv] = entry
		out[openAPIName(gv)] = entry.document
	}
	return out
}

func newCustomDocument(gv schema.GroupVersion, resources []*registry.Resource) *openAPIDocument {
	sum := sha512.New()
	for _, res := range resources {
		fmt.Fprintf(sum, "%s %s\n", res.Info.Resource, res.Revision)
	}
	return &openAPIDocument{
		etag: strings.ToUpper(hex.EncodeToString(sum.Sum(nil))), toProto: handler3.ToV3ProtoBinary,
		build: func() ([]byte, error) {
			specs := make([]*spec3.OpenAPI, 0, len(resources))
			for _, res := range resources {
				document, err := res.Custom().OpenAPIV3()
				if apierrors.IsNotFound(err) {
					continue // its definition has just been deleted
				}
				if err != nil {
					return nil, fmt.Errorf("building OpenAPI v3 of %s: %w", res.Info.Resource, err)
				}
				specs = append(specs, document)
			}
			merged, err := crdbuilder.MergeSpecsV3(specs...)
			if err != nil {
				return nil, fmt.Errorf("building OpenAPI v3 of %s: %w", gv, err)
			}
			data, err := json.Marshal(merged)
			if err != nil {
				return nil, fmt.Errorf("encoding OpenAPI: %w", err)
			}
			return pack(data)
		},
	}
}

// swaggerParts are the parts of a Swagger document that grow with each kind, as bytes.
type swaggerParts struct {
	Paths       map[string]json.RawMessage `json:"paths"`
	Definitions map[string]json.RawMessage `json:"definitions"`
	Parameters  map[string]json.RawMessage `json:"parameters"`
}

// addCustomLocked adds the custom resources to the Swagger document of the built-in kinds. What is
// there already stays. o.mu is held.
func (o *openAPI) addCustomLocked(document []byte) ([]byte, error) {
	resources := o.server.routes().customResources()
	known := o.custom.v2
	o.custom.v2 = make(map[*registry.Resource][]byte, len(resources))
	if len(resources) == 0 {
		return document, nil
	}
	var whole map[string]json.RawMessage
	var parts swaggerParts
	if err := json.Unmarshal(document, &whole); err != nil {
		return nil, fmt.Errorf("reading OpenAPI v2: %w", err)
	}
	if err := json.Unmarshal(document, &parts); err != nil {
		return nil, fmt.Errorf("reading OpenAPI v2: %w", err)
	}
	if parts.Parameters == nil {
		parts.Parameters = map[string]json.RawMessage{}
	}
	for _, res := range resources {
		packed := known[res]
		if packed == nil {
			built, err := buildCustomV2(res)
			if apierrors.IsNotFound(err) {
				continue // its definition has just been deleted
			}
			if err != nil {
				return nil, err
			}
			packed = built
		}
		o.custom.v2[res] = packed
		if err := parts.add(packed); err != nil {
			return nil, err
		}
	}
	for name, part := range map[string]any{"paths": parts.Paths, "definitions": parts.Definitions, "parameters": parts.Parameters} {
		data, err := json.Marshal(part)
		if err != nil {
			return nil, fmt.Errorf("encoding OpenAPI v2: %w", err)
		}
		whole[name] = data
	}
	return json.Marshal(whole)
}

func buildCustomV2(res *registry.Resource) ([]byte, error) {
	swagger, err := res.Custom().OpenAPIV2()
	if err != nil {
		return nil, fmt.Errorf("building OpenAPI v2 of %s: %w", res.Info.Resource, err)
	}
	data, err := json.Marshal(swagger)
	if err != nil {
		return nil, fmt.Errorf("encoding OpenAPI v2 of %s: %w", res.Info.Resource, err)
	}
	return pack(data)
}

// add puts what a document has into the parts, where it is not there yet.
func (p *swaggerParts) add(packed []byte) error {
	data, err := unpack(packed)
	if err != nil {
		return err
	}
	var more swaggerParts
	if err := json.Unmarshal(data, &more); err != nil {
		return fmt.Errorf("reading OpenAPI v2: %w", err)
	}
	for _, pair := range []struct{ into, from map[string]json.RawMessage }{
		{p.Paths, more.Paths}, {p.Definitions, more.Definitions}, {p.Parameters, more.Parameters},
	} {
		for name, value := range pair.from {
			if _, there := pair.into[name]; !there {
				pair.into[name] = value
			}
		}
	}
	return nil
}
