package api

import (
	"net/http"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// impersonator lets a request act as another user, by upstream's filter: the rights it takes, those of constrained
// impersonation too, and what is refused are upstream's. It is made on first use.
type impersonator struct {
	once   sync.Once
	filter http.Handler
}

// impersonate goes on as the user that the headers ask for, or answers why not. The headers are taken off the
// request, so that a proxied one does not carry them on.
func (s *Server) impersonate(q *query) int {
	s.impersonator.once.Do(func() {
		s.impersonator.filter = impersonation.WithConstrainedImpersonation(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			q, ok := r.Context().Value(impersonating{}).(*impersonated)
			if !ok {
				return
			}
			q.query.user, _ = request.UserFrom(r.Context())
			q.query.r, q.done = r, true
		}), s.opts.Authorizer, legacyscheme.Codecs)
	})
	ctx := request.WithRequestInfo(request.WithUser(q.r.Context(), q.user), &q.path.RequestInfo)
	state := &impersonated{query: q}
	answer := &codeWriter{ResponseWriter: q.w, code: http.StatusOK}
	s.impersonator.filter.ServeHTTP(answer, q.r.WithContext(request.WithValue(ctx, impersonating{}, state)))
	if !state.done {
		return answer.code
	}
	return s.permit(q)
}

// impersonating is where a request's context carries what impersonate needs back.
type impersonating struct{}

type impersonated struct {
	query *query
	done  bool // the headers were good and the user may
}

// impersonates reports whether any impersonation header is there, without allocating.
func impersonates(header http.Header) bool {
	for name := range header {
		if strings.HasPrefix(name, "Impersonate-") && (name == authenticationv1.ImpersonateUserHeader ||
			name == authenticationv1.ImpersonateGroupHeader || name == authenticationv1.ImpersonateUIDHeader ||
			strings.HasPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)) {
			return true
		}
	}
	return false
}
