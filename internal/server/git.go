package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/api/auth"
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
	cluster, err := deploy.Connect(&rest.Config{Host: "https://gantry.invalid", Transport: streamTransport{cp, response.User}, UserAgent: "gantry-git"})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	repositories.Serve(w, r, target, git.Pusher{Name: strings.TrimPrefix(response.User.GetName(), "system:serviceaccount:gantry-users:"), Cluster: cluster})
}

// streamTransport is localTransport for answers that are read while they are written, such as watches.
type streamTransport struct {
	cp   *ControlPlane
	user user.Info
}

// RoundTrip implements http.RoundTripper. The handler ends with the request's context or the answer's body.
func (t streamTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	inner := r.Clone(auth.InProcess(ctx, t.user))
	inner.RemoteAddr, inner.RequestURI, inner.Host = "", r.URL.RequestURI(), r.URL.Host
	if inner.Body == nil {
		inner.Body = http.NoBody
	}
	body, out := io.Pipe()
	answer := &streamAnswer{header: http.Header{}, out: out, begun: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		defer func() {
			if cause := recover(); cause != nil { // http.ErrAbortHandler: an answer that was cut
				_ = out.CloseWithError(io.ErrUnexpectedEOF)
				answer.WriteHeader(http.StatusInternalServerError)
			}
		}()
		t.cp.Handler().ServeHTTP(answer, inner)
		answer.WriteHeader(http.StatusOK)
		_ = inner.Body.Close()
		_ = out.Close()
	}()
	select {
	case <-answer.begun:
	case <-ctx.Done():
		_ = body.CloseWithError(context.Cause(ctx))
		<-ended
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		select { // it ended by itself
		case <-answer.begun:
		default:
			return nil, errors.New("the API gave no answer")
		}
	}
	return &http.Response{
		Status: strconv.Itoa(answer.code) + " " + http.StatusText(answer.code), StatusCode: answer.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: answer.sent, Request: r, ContentLength: -1,
		Body: &streamBody{PipeReader: body, end: func() { cancel(); <-ended }},
	}, nil
}

// streamBody ends the handler when nobody reads on.
type streamBody struct {
	*io.PipeReader
	end func()
}

// Close implements io.Closer.
func (b *streamBody) Close() error {
	err := b.PipeReader.Close()
	b.end()
	return err
}

// streamAnswer passes an answer on as it is written.
type streamAnswer struct {
	header, sent http.Header
	code         int
	out          *io.PipeWriter
	once         sync.Once
	begun        chan struct{} // closed when code and sent are there
}

// Header implements http.ResponseWriter.
func (a *streamAnswer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *streamAnswer) WriteHeader(code int) {
	if code < http.StatusOK {
		return
	}
	a.once.Do(func() {
		a.code, a.sent = code, a.header.Clone()
		close(a.begun)
	})
}

// Write implements http.ResponseWriter.
func (a *streamAnswer) Write(data []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.out.Write(data)
}

// Flush implements http.Flusher.
func (a *streamAnswer) Flush() { a.WriteHeader(http.StatusOK) }
