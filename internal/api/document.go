package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// issuerDocuments are what others need to verify service account tokens, made on first use.
type issuerDocuments struct {
	once           sync.Once
	config, keySet []byte
	err            error
}

// jwksPath is where the keys of service account tokens are.
const jwksPath = "/openid/v1/jwks"

// document answers a request that is not for a resource.
func (s *Server) document(q *query) int {
	if endpoint, check, ok := healthPath(q.path.Path); ok {
		return s.health(q, endpoint, check)
	}
	parts := strings.Split(strings.Trim(q.path.Path, "/"), "/")
	if code, ok := s.aggregatedDocument(q, parts); ok {
		return code
	}
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		if s.knowsDocument(q.path.Path) {
			return s.fail(q, errNoMethod())
		}
		return s.notFoundPath(q)
	}
	switch parts[0] {
	case "api", "apis":
		return s.discover(q, parts)
	case "openapi":
		return s.openapi.serve(q, parts)
	}
	switch q.path.Path {
	case "/":
		return s.index(q)
	case "/version", "/version/":
		data, err := json.MarshalIndent(s.opts.Version, "", "  ")
		if err != nil {
			return s.crash(q, err)
		}
		return s.send(q, output{}, http.StatusOK, data)
	case "/metrics":
		s.scrape.ServeHTTP(q.w, q.r)
		return http.StatusOK
	case "/.well-known/openid-configuration", jwksPath:
		return s.issuerDocument(q)
	}
	return s.notFoundPath(q)
}

func (s *Server) knowsDocument(path string) bool {
	return slices.Contains(s.paths(), strings.TrimSuffix(path, "/"))
}

// paths lists the documents there are, as / shows them.
func (s *Server) paths() []string {
	paths := []string{
		"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/apis/", "/healthz", "/livez", "/metrics",
		"/openapi/v2", "/openapi/v3", "/openapi/v3/", jwksPath, "/readyz", "/version",
	}
	for _, group := range s.documents().groups.Groups {
		paths = append(paths, "/apis/"+group.Name)
		for _, version := range group.Versions {
			paths = append(paths, "/apis/"+version.GroupVersion)
		}
	}
	slices.Sort(paths)
	return paths
}

func (s *Server) index(q *query) int {
	data, err := json.MarshalIndent(map[string][]string{"paths": s.paths()}, "", "  ")
	if err != nil {
		return s.crash(q, err)
	}
	return s.send(q, output{}, http.StatusOK, data)
}

// issuerDocument answers the discovery document or the key set of the token issuer.
func (s *Server) issuerDocument(q *query) int {
	s.issuer.once.Do(func() {
		s.issuer.config, s.issuer.keySet, s.issuer.err = s.opts.Authenticator.OpenIDMetadata()
	})
	if s.issuer.err != nil {
		s.opts.Log.Debug("the token issuer has no discovery document", "error", s.issuer.err)
		return s.notFoundPath(q)
	}
	header := q.w.Header()
	header.Set("Cache-Control", "public, max-age=3600")
	if q.path.Path == jwksPath {
		header.Set("Content-Type", "application/jwk-set+json")
		return s.plain(q, s.issuer.keySet)
	}
	header.Set("Content-Type", typeJSON)
	return s.plain(q, s.issuer.config)
}
