package api

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/handler"

	"gantry.dev/gantry/internal/api/aggregate"
)

// aggregation is how what other servers have is shown together with what is here.
type aggregation struct {
	from    *aggregate.Aggregator
	schemas *aggregate.Schemas

	mu      sync.Mutex // guards the fields below
	merged  *discovery
	local   *discovery          // that merged was made of
	foreign []aggregate.Version // as well
}

// Versions lists the group versions that are served here.
func (s *Server) Versions() []schema.GroupVersion { return sortedVersions(s.routes().versions) }

// target is the other server that has a group version, nil if it is served here.
func (s *Server) target(gv schema.GroupVersion) *aggregate.Target {
	if s.aggregation == nil {
		return nil
	}
	return s.aggregation.from.Target(gv)
}

// delegate passes a request on to another server, as the user whom it acts as.
func (s *Server) delegate(q *query, target *aggregate.Target) int {
	ctx := q.context()
	if !q.path.longRunning() {
		limit := s.opts.RequestTimeout
		if asked := askedTimeout(q.r.URL.RawQuery); asked > 0 {
			limit = min(limit, asked)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return target.Serve(q.w, q.r.WithContext(ctx), q.user)
}

// documents is the discovery of everything, here and elsewhere.
func (s *Server) documents() *discovery {
	local := s.routes().discovery()
	if s.aggregation == nil {
		return local
	}
	return s.aggregation.documents(local)
}

func (a *aggregation) documents(local *discovery) *discovery {
	foreign := a.from.Versions()
	if !a.from.HasRemote() {
		return local
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.local != local || len(a.foreign) != len(foreign) || &a.foreign[0] != &foreign[0] {
		a.merged, a.local, a.foreign = mergeDiscovery(local, foreign), local, foreign
	}
	return a.merged
}

// mergeDiscovery makes the documents of what is here and elsewhere, in the order of their priorities. A group version
// that another server has taken over shows what that one says.
func mergeDiscovery(local *discovery, foreign []aggregate.Version) *discovery {
	known := map[schema.GroupVersion]aggregate.Version{}
	for _, version := range foreign {
		known[version.GroupVersion] = version
	}
	all := []aggregate.Version{}
	here, _ := local.aggregated[aggregatedKey{"/apis", "v2"}].object.(*apidiscovery.APIGroupDiscoveryList)
	for i := range here.Items {
		for j, version := range here.Items[i].Versions {
			gv := schema.GroupVersion{Group: here.Items[i].Name, Version: version.Version}
			merged := known[gv]
			if delete(known, gv); !merged.Remote {
				merged.Discovery = version
			}
			if merged.GroupVersion = gv; merged.GroupPriority == 0 {
				merged.GroupPriority, merged.Priority = localPriority(gv, int32(len(here.Items)-i), int32(len(here.Items[i].Versions)-j))
			}
			all = append(all, merged)
		}
	}
	for _, version := range known {
		if version.Remote {
			all = append(all, version)
		}
	}
	aggregate.Sort(all)
	return newMergedDiscovery(local, all)
}

// localPriority is that of a group version without an APIService: of a built-in one, else after all that are, in the
// order in which it was.
func localPriority(gv schema.GroupVersion, groupRank, versionRank int32) (group, version int32) {
	const first = 20001 // before all others, as upstream shows it
	if gv.Group == "apiregistration.k8s.io" {
		return first, versionRank
	}
	if group, version, ok := aggregate.Priority(gv); ok {
		return group, version
	}
	return min(groupRank, aggregate.CustomGroupPriority), versionRank
}

// newMergedDiscovery makes the documents below /apis anew; those of the core group stay.
func newMergedDiscovery(local *discovery, all []aggregate.Version) *discovery {
	d := &discovery{
		core: local.core, groups: &metav1.APIGroupList{Groups: []metav1.APIGroup{}}, group: map[string]*metav1.APIGroup{},
		resources: local.resources, aggregated: map[aggregatedKey]aggregatedDocument{},
	}
	var names []string
	grouped := map[string][]apidiscovery.APIVersionDiscovery{}
	for _, version := range all {
		if grouped[version.Group] == nil {
			names = append(names, version.Group)
		}
		grouped[version.Group] = append(grouped[version.Group], version.Discovery)
	}
	for _, name := range names {
		d.addGroup(name, grouped[name])
	}
	for _, version := range []string{"v2", "v2beta1"} {
		key := aggregatedKey{"/api", version}
		d.aggregated[key] = local.aggregated[key]
	}
	d.aggregate("/apis", names, grouped, func(string) bool { return true })
	return d
}

// aggregatedDocument answers a document that other servers have a part in; ok is false when it is this one's alone.
func (s *Server) aggregatedDocument(q *query, parts []string) (code int, ok bool) {
	if s.aggregation == nil || !s.aggregation.from.HasRemote() {
		return 0, false
	}
	switch {
	case parts[0] == "apis" && len(parts) == 3:
		if target := s.target(schema.GroupVersion{Group: parts[1], Version: parts[2]}); target != nil {
			return s.delegate(q, target), true
		}
	case parts[0] == "openapi" && len(parts) == 5 && parts[1] == "v3" && parts[2] == "apis":
		if target := s.target(schema.GroupVersion{Group: parts[3], Version: parts[4]}); target != nil {
			return s.delegate(q, target), true
		}
	case parts[0] == "openapi" && len(parts) == 2 && parts[1] == "v3":
		return s.mergedIndex(q), true
	case parts[0] == "openapi" && len(parts) == 2 && parts[1] == "v2":
		return s.mergedSwagger(q), true
	}
	return 0, false
}

// captured keeps an answer in memory.
type captured struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (c *captured) Header() http.Header { return c.header }

// WriteHeader implements http.ResponseWriter.
func (c *captured) WriteHeader(code int) { c.code = code }

// Write implements http.ResponseWriter.
func (c *captured) Write(data []byte) (int, error) { return c.body.Write(data) }

// own is this server's own OpenAPI document as JSON, and its ETag.
func (s *Server) own(q *query, parts []string) (*captured, string) {
	into := &captured{header: http.Header{}, code: http.StatusOK}
	inner := &query{w: into, r: q.r.Clone(q.r.Context()), start: q.start, path: q.path, user: q.user}
	inner.r.Header = http.Header{"Accept": {typeJSON}}
	inner.r.URL.RawQuery = ""
	s.openapi.serve(inner, parts)
	return into, strings.Trim(into.header.Get("Etag"), `"`)
}

// mergedIndex answers the list of OpenAPI v3 documents.
func (s *Server) mergedIndex(q *query) int {
	own, _ := s.own(q, []string{"openapi", "v3"})
	var index struct {
		Paths map[string]map[string]string `json:"paths"`
	}
	if err := json.Unmarshal(own.body.Bytes(), &index); err != nil {
		return s.crash(q, err)
	}
	for name, url := range s.aggregation.schemas.V3URLs(q.r.Context()) {
		index.Paths[name] = map[string]string{"serverRelativeURL": url}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return s.crash(q, err)
	}
	return s.tagged(q, data)
}

// mergedSwagger answers the one OpenAPI v2 document.
func (s *Server) mergedSwagger(q *query) int {
	wantsProto, ok := openAPIFormat(q.accept(), "v2")
	if !ok {
		http.Error(q.w, "", http.StatusNotAcceptable)
		return http.StatusNotAcceptable
	}
	own, hash := s.own(q, []string{"openapi", "v2"})
	if own.code != http.StatusOK {
		return s.crash(q, errNoRoute())
	}
	data, err := s.aggregation.schemas.MergeV2(q.r.Context(), own.body.Bytes(), hash)
	if err != nil {
		return s.crash(q, err)
	}
	if wantsProto {
		if data, err = handler.ToProtoBinary(data); err != nil {
			return s.crash(q, err)
		}
	}
	q.w.Header().Set("Content-Type", typeJSON)
	if wantsProto {
		q.w.Header().Set("Content-Type", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
	}
	q.w.Header().Add("Vary", "Accept")
	return s.tagged(q, data)
}

// tagged sends a document with its hash as ETag, or 304 to a client that has it.
func (s *Server) tagged(q *query, data []byte) int {
	sum := sha512.Sum512(data)
	tag := `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`
	q.w.Header().Set("Etag", tag)
	if q.r.Header.Get("If-None-Match") == tag {
		q.w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	if q.w.Header().Get("Content-Type") == "" {
		q.w.Header().Set("Content-Type", typeJSON)
	}
	return s.body(q, http.StatusOK, data)
}
