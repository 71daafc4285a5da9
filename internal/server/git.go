package server

import (
	"net/http"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/git"
)

// wellKnownAuthority is where a client that does not know the cluster yet finds its authority, to compare it with a fingerprint.
const wellKnownAuthority = "/.well-known/gantry/ca.crt"

// withGit serves pushes and the authority's certificate, and passes all else on.
func (cp *ControlPlane) withGit(next http.Handler) http.Handler {
	handler := sync.OnceValues(func() (*git.Handler, error) { // with the first push
		return git.New(git.Options{Dir: cp.opts.GitDir, Log: cp.opts.Logger})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		switch {
		case strings.HasPrefix(path, git.Prefix) && cp.opts.GitDir != "":
			repositories, err := handler()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			cp.serveGit(w, r, repositories)
		case path == wellKnownAuthority && r.Method == http.MethodGet:
			w.Header().Set("Content-Type", "application/x-pem-file")
			_, _ = w.Write(cp.opts.RootCA)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// serveGit asks who pushes and whether they may change the application. git sends a token as the password of Basic
// authentication, whatever the user name.
func (cp *ControlPlane) serveGit(w http.ResponseWriter, r *http.Request, repositories *git.Handler) {
	target, ok := git.Parse(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if _, password, basic := r.BasicAuth(); basic {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+password)
	}
	response, known, err := cp.authn.AuthenticateRequest(r)
	if err != nil || !known || response.User.GetName() == user.Anonymous {
		w.Header().Set("WWW-Authenticate", `Basic realm="gantry: any user name, and a token as the password"`)
		http.Error(w, "log in with a token of this cluster as the password", http.StatusUnauthorized)
		return
	}
	decision, _, err := cp.authorizer.Authorize(r.Context(), &authorizer.AttributesRecord{
		User: response.User, Verb: "patch", APIGroup: v1alpha1.Group, APIVersion: "v1alpha1", Resource: "apps",
		Namespace: target.Project, Name: target.App, ResourceRequest: true, Path: r.URL.Path,
	})
	if err != nil || decision != authorizer.DecisionAllow {
		http.Error(w, response.User.GetName()+" may not deploy "+target.App+" in "+target.Project, http.StatusForbidden)
		return
	}
	if there, err := cp.projectExists(r.Context(), target.Project); err != nil || !there {
		http.Error(w, "there is no project "+target.Project, http.StatusNotFound)
		return
	}
	cluster, err := deploy.Connect(&rest.Config{Host: "https://gantry.invalid", Transport: streamTransport{cp.Handler(), response.User}, UserAgent: "gantry-git"})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	repositories.Serve(w, r, target, git.Pusher{Name: strings.TrimPrefix(response.User.GetName(), "system:serviceaccount:gantry-users:"), Cluster: cluster})
}
