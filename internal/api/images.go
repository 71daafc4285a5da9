package api

import (
	"errors"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// Images is the cluster's image registry, at /v2/ of this server's port. Who asks, and whether they may, is decided here,
// by the right on a virtual resource, and recorded like any other request.
type Images interface {
	http.Handler
	// Need is the right that a request needs: a verb on the resource, in a namespace, by name. No verb: it is enough to be
	// known. The handler finds the user in the request's context.
	Need(r *http.Request) (verb, namespace, name string)
	// Resource is the group and name of the virtual resource.
	Resource() (group, resource string)
	// Refuse answers in the registry's own form.
	Refuse(w http.ResponseWriter, code int, message string)
}

// isImagesPath reports whether a path is below /v2.
func isImagesPath(path string) bool {
	return len(path) >= 3 && path[:3] == "/v2" && (len(path) == 3 || path[3] == '/')
}

// imagesPath makes a request to the registry one for its virtual resource. Clients of registries send a password by Basic
// authentication: it is the token, whatever the user name.
func (s *Server) imagesPath(q *query) {
	q.path.images = true
	if _, password, ok := q.r.BasicAuth(); ok {
		r := q.r.WithContext(q.r.Context())
		r.Header = q.r.Header.Clone()
		r.Header.Set("Authorization", "Bearer "+password)
		q.r = r
	}
	verb, namespace, name := s.opts.Images.Need(q.r)
	if verb == "" {
		return
	}
	info := &q.path.RequestInfo
	info.IsResourceRequest, info.APIPrefix, info.APIVersion = true, "v2", "v1"
	info.APIGroup, info.Resource = s.opts.Images.Resource()
	info.Verb, info.Namespace, info.Name = verb, namespace, name
}

// serveImages answers a request of a user who may.
func (s *Server) serveImages(q *query) int {
	if q.user.GetName() == user.Anonymous { // so that the client sends what it has
		return s.fail(q, apierrors.NewUnauthorized("log in with a token of this cluster as the password"))
	}
	if q.path.IsResourceRequest {
		if err := s.authorize(q); err != nil {
			return s.fail(q, err)
		}
	} else {
		q.auditAuthorized(authorizer.DecisionAllow, "", nil)
	}
	answer := &codeWriter{ResponseWriter: q.w, code: http.StatusOK}
	s.opts.Images.ServeHTTP(answer, q.r.WithContext(request.WithUser(q.r.Context(), q.user)))
	return answer.code
}

// failImages is fail for clients of the registry.
func (s *Server) failImages(q *query, err error) int {
	var status apierrors.APIStatus
	code, message := http.StatusInternalServerError, err.Error()
	if errors.As(err, &status) {
		code, message = int(status.Status().Code), status.Status().Message
	}
	s.opts.Images.Refuse(q.w, code, message)
	return code
}
