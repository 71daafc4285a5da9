package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sort"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	apidiscoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"gantry.dev/gantry/internal/api/registry"
)

// discovery holds the documents that say what is served at one time. They are made once, as objects;
// their bytes are made per request: clients keep them for hours.
type discovery struct {
	core      *metav1.APIVersions
	groups    *metav1.APIGroupList
	group     map[string]*metav1.APIGroup
	resources map[schema.GroupVersion]*metav1.APIResourceList
	// aggregated holds both versions of the documents at /api and /apis, with their ETags.
	aggregated map[aggregatedKey]aggregatedDocument
}

type aggregatedKey struct{ prefix, version string }

type aggregatedDocument struct {
	object runtime.Object
	etag   string
}

// groupOrder is the order in which clients look for a resource that several groups have (kube-aggregator's
// priorities); groups not named follow by name.
func groupOrder() []string {
	return []string{
		"", "apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch",
		"certificates.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io",
		"admissionregistration.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io",
		"resource.k8s.io", "flowcontrol.apiserver.k8s.io", "internal.apiserver.k8s.io",
	}
}

// newDiscovery makes the documents of everything in r.
func newDiscovery(r *routes) *discovery {
	d := &discovery{
		core: &metav1.APIVersions{
			Versions:                   []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{},
		},
		groups: &metav1.APIGroupList{Groups: []metav1.APIGroup{}}, group: map[string]*metav1.APIGroup{},
		resources: map[schema.GroupVersion]*metav1.APIResourceList{}, aggregated: map[aggregatedKey]aggregatedDocument{},
	}
	versions := sortedVersions(r.versions)
	grouped := map[string][]apidiscovery.APIVersionDiscovery{}
	var names []string
	for _, gv := range versions {
		d.resources[gv] = legacyResources(r, gv)
		if grouped[gv.Group] == nil {
			names = append(names, gv.Group)
		}
		grouped[gv.Group] = append(grouped[gv.Group], apidiscovery.APIVersionDiscovery{
			Version: gv.Version, Freshness: apidiscovery.DiscoveryFreshnessCurrent, Resources: aggregatedResources(r, gv)})
	}
	for _, name := range names {
		if name != "" {
			d.addGroup(name, grouped[name])
		}
	}
	d.aggregate("/api", names, grouped, func(name string) bool { return name == "" })
	d.aggregate("/apis", names, grouped, func(name string) bool { return name != "" })
	return d
}

// addGroup makes what the older documents say of a group; the first of its versions is preferred.
func (d *discovery) addGroup(name string, versions []apidiscovery.APIVersionDiscovery) {
	group := metav1.APIGroup{Name: name}
	for _, version := range versions {
		group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{
			GroupVersion: schema.GroupVersion{Group: name, Version: version.Version}.String(), Version: version.Version})
	}
	group.PreferredVersion = group.Versions[0]
	d.groups.Groups = append(d.groups.Groups, group)
	alone := group
	d.group[name] = &alone
}

// aggregate makes both versions of the one document that holds everything below prefix.
func (d *discovery) aggregate(prefix string, names []string, grouped map[string][]apidiscovery.APIVersionDiscovery, belongs func(string) bool) {
	list := &apidiscovery.APIGroupDiscoveryList{Items: []apidiscovery.APIGroupDiscovery{}}
	for _, name := range names {
		if belongs(name) {
			list.Items = append(list.Items, apidiscovery.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: name}, Versions: grouped[name]})
		}
	}
	d.keep(prefix, "v2", list)
	old := &apidiscoveryv2beta1.APIGroupDiscoveryList{}
	if data, err := json.Marshal(list); err == nil && json.Unmarshal(data, old) == nil { // the two have the same fields
		d.keep(prefix, "v2beta1", old)
	}
}

func (d *discovery) keep(prefix, version string, object runtime.Object) {
	data, _ := json.Marshal(object) // types of the API always can be
	sum := sha256.Sum256(data)
	d.aggregated[aggregatedKey{prefix, version}] = aggregatedDocument{object, strings.ToUpper(hex.EncodeToString(sum[:]))}
}

func sortedVersions(served map[schema.GroupVersion]bool) []schema.GroupVersion {
	out := make([]schema.GroupVersion, 0, len(served))
	for gv := range served {
		out = append(out, gv)
	}
	order := groupOrder()
	rank := func(group string) int {
		if i := slices.Index(order, group); i >= 0 {
			return i
		}
		return len(order)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if rank(a.Group) != rank(b.Group) {
			return rank(a.Group) < rank(b.Group)
		}
		if a.Group != b.Group {
			return a.Group < b.Group
		}
		return version.CompareKubeAwareVersionStrings(a.Version, b.Version) > 0
	})
	return out
}

// legacyResources lists the resources and subresources of one version.
func legacyResources(routes *routes, gv schema.GroupVersion) *metav1.APIResourceList {
	list := &metav1.APIResourceList{GroupVersion: gv.String(), APIResources: []metav1.APIResource{}}
	for _, res := range routes.resources {
		if res.Info.Resource.GroupVersion() != gv {
			continue
		}
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: res.Info.Resource.Resource, SingularName: res.Singular, Namespaced: res.Namespaced, Kind: res.Kind.Kind,
			Verbs: res.Verbs, ShortNames: res.ShortNames, Categories: res.Categories, StorageVersionHash: storageHash(res),
		})
		for _, sub := range res.Subresources {
			entry := metav1.APIResource{Name: res.Info.Resource.Resource + "/" + sub.Name, Namespaced: res.Namespaced, Kind: sub.Kind.Kind, Verbs: sub.Verbs}
			if sub.Kind.GroupVersion() != gv {
				entry.Group, entry.Version = sub.Kind.Group, sub.Kind.Version
			}
			list.APIResources = append(list.APIResources, entry)
		}
	}
	for _, r := range routes.posted {
		if r.resource.GroupVersion() == gv {
			list.APIResources = append(list.APIResources, metav1.APIResource{
				Name: r.resource.Resource, SingularName: r.singular, Namespaced: r.namespaced, Kind: r.kind.Kind, Verbs: []string{"create"}})
		}
	}
	measured, _ := routes.measuredResources(gv)
	list.APIResources = append(list.APIResources, measured...)
	sort.SliceStable(list.APIResources, func(i, j int) bool { return list.APIResources[i].Name < list.APIResources[j].Name })
	return list
}

// storageHash names the version that objects are stored in (apiserver, discovery.StorageVersionHash); "" for objects
// that are not stored.
func storageHash(res *registry.Resource) string {
	kind := res.Stored
	if !slices.Contains(res.Verbs, "watch") {
		return ""
	}
	sum := sha256.Sum256([]byte(kind.Group + "/" + kind.Version + "/" + kind.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// aggregatedResources is the same in the aggregated form.
func aggregatedResources(routes *routes, gv schema.GroupVersion) []apidiscovery.APIResourceDiscovery {
	out := []apidiscovery.APIResourceDiscovery{}
	scope := func(namespaced bool) apidiscovery.ResourceScope {
		if namespaced {
			return apidiscovery.ScopeNamespace
		}
		return apidiscovery.ScopeCluster
	}
	kindOf := func(kind schema.GroupVersionKind) *metav1.GroupVersionKind {
		if kind.GroupVersion() == gv { // goes without saying
			return &metav1.GroupVersionKind{Kind: kind.Kind}
		}
		return &metav1.GroupVersionKind{Group: kind.Group, Version: kind.Version, Kind: kind.Kind}
	}
	for _, res := range routes.resources {
		if res.Info.Resource.GroupVersion() != gv {
			continue
		}
		entry := apidiscovery.APIResourceDiscovery{
			Resource: res.Info.Resource.Resource, ResponseKind: kindOf(res.Kind), Scope: scope(res.Namespaced), SingularResource: res.Singular,
			Verbs: res.Verbs, ShortNames: res.ShortNames, Categories: res.Categories,
		}
		for _, sub := range res.Subresources {
			entry.Subresources = append(entry.Subresources, apidiscovery.APISubresourceDiscovery{
				Subresource: sub.Name, ResponseKind: kindOf(sub.Kind), Verbs: sub.Verbs})
		}
		out = append(out, entry)
	}
	for _, r := range routes.posted {
		if r.resource.GroupVersion() == gv {
			out = append(out, apidiscovery.APIResourceDiscovery{Resource: r.resource.Resource, ResponseKind: kindOf(r.kind),
				Scope: scope(r.namespaced), SingularResource: r.singular, Verbs: []string{"create"}})
		}
	}
	_, measured := routes.measuredResources(gv)
	out = append(out, measured...)
	sort.SliceStable(out, func(i, j int) bool { return out[i].Resource < out[j].Resource })
	return out
}

// discover answers /api, /apis and what is below them down to a version.
func (s *Server) discover(q *query, parts []string) int {
	root := "/" + parts[0]
	class := classPlain
	if len(parts) == 1 {
		class = classDiscover
	}
	out, ok := s.accepts.negotiate(q.accept(), class)
	if !ok {
		return s.fail(q, notAcceptable(class))
	}
	out.pretty = wantsPretty(&out, q.r)
	if len(parts) == 1 {
		q.w.Header().Add("Vary", "Accept")
		if out.profile != "" {
			return s.discoverAll(q, out, root)
		}
	}
	v1 := schema.GroupVersion{Version: "v1"}
	known := s.documents()
	switch {
	case root == "/api" && len(parts) == 1:
		core := *known.core
		core.ServerAddressByClientCIDRs = []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: q.r.Host}}
		return s.writeObject(q, out, http.StatusOK, v1.WithKind("APIVersions"), &core)
	case root == "/api" && len(parts) == 2:
		return s.discoverVersion(q, out, schema.GroupVersion{Version: parts[1]})
	case root == "/apis" && len(parts) == 1:
		groups := *known.groups
		return s.writeObject(q, out, http.StatusOK, v1.WithKind("APIGroupList"), &groups)
	case root == "/apis" && len(parts) == 2:
		if group := known.group[parts[1]]; group != nil {
			copied := *group
			return s.writeObject(q, out, http.StatusOK, v1.WithKind("APIGroup"), &copied)
		}
	case root == "/apis" && len(parts) == 3:
		return s.discoverVersion(q, out, schema.GroupVersion{Group: parts[1], Version: parts[2]})
	}
	return s.notFoundPath(q)
}

func (s *Server) discoverVersion(q *query, out output, gv schema.GroupVersion) int {
	list := s.routes().discovery().resources[gv]
	if list == nil {
		return s.notFoundPath(q)
	}
	copied := *list
	return s.writeObject(q, out, http.StatusOK, schema.GroupVersionKind{Version: "v1", Kind: "APIResourceList"}, &copied)
}

// discoverAll answers the aggregated document, or 304 to a client that has it.
func (s *Server) discoverAll(q *query, out output, root string) int {
	document := s.documents().aggregated[aggregatedKey{root, out.profile}]
	header := q.w.Header()
	header.Set("ETag", `"`+document.etag+`"`)
	header.Set("Cache-Control", "public")
	if q.r.Header.Get("If-None-Match") == `"`+document.etag+`"` {
		q.w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	kind := schema.GroupVersionKind{Group: "apidiscovery.k8s.io", Version: out.profile, Kind: "APIGroupDiscoveryList"}
	mediaType := out.mediaType() + ";g=apidiscovery.k8s.io;v=" + out.profile + ";as=APIGroupDiscoveryList"
	object := document.object.DeepCopyObject()
	if out.format == formatProto {
		if m, ok := object.(marshaler); ok {
			raw, err := m.Marshal()
			if err != nil {
				return s.crash(q, err)
			}
			header.Set("Content-Type", mediaType)
			return s.body(q, http.StatusOK, wrapProto(protoHead(kind), raw))
		}
	}
	object.GetObjectKind().SetGroupVersionKind(kind)
	data, err := json.Marshal(object)
	if err != nil {
		return s.crash(q, err)
	}
	header.Set("Content-Type", mediaType)
	return s.body(q, http.StatusOK, data, s.shared.newline)
}
