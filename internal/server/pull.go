package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/pki"
)

// nodeRegistry is the cluster's registry for the node of this process: its content is linked, not sent. A node on another
// machine gives Transport a client over HTTPS with its certificate, and no Link.
func (cp *ControlPlane) nodeRegistry(nodeName string) *containerd.Registry {
	if cp.images == nil {
		return nil
	}
	node := &user.DefaultInfo{Name: pki.NodeUserPrefix + nodeName, Groups: []string{user.NodesGroup, user.AllAuthenticated}}
	return &containerd.Registry{
		Host: images.Host, Transport: streamTransport{cp.handler, node},
		Link: func(ctx context.Context, repository string, d digest.Digest, target string) error {
			repo, err := images.ParseRepository(repository)
			if err != nil {
				return err
			}
			err = cp.images.Link(ctx, repo, d, target)
			if errors.Is(err, images.ErrNotFound) && cp.replica.Fetch(ctx, repo, d) {
				err = cp.images.Link(ctx, repo, d, target)
			}
			return err
		},
	}
}

// accessAsker answers who somebody is and what they may do.
type accessAsker interface {
	allows(ctx context.Context, attributes authorizer.Attributes) bool
	whose(ctx context.Context, token string) (user.Info, bool)
}

// mayUseImages asks for a right on images.
func mayUseImages(ctx context.Context, asker accessAsker, u user.Info, need images.Need) bool {
	return asker.allows(ctx, &authorizer.AttributesRecord{
		User: u, Verb: need.Verb, APIGroup: images.Group, APIVersion: "v1", Resource: images.Resource,
		Namespace: need.Project, Name: need.App, ResourceRequest: true,
	})
}

// podMayPull says why a pod may not use an image of the cluster's registry. Those of its own project it may; others where its
// service account, or a token in one of its pull secrets, has the right to pull. It is asked at each start of a container,
// so that an image which another project's pod brought to the node is no way around the right.
func podMayPull(ctx context.Context, asker accessAsker, pod *corev1.Pod, ref string, credentials func() ([]container.Credentials, error)) error {
	if !strings.HasPrefix(ref, images.Host+"/") {
		return nil
	}
	image, err := images.ParseReference(ref)
	if err != nil {
		return err
	}
	repo := image.Repository
	if repo.Project == pod.Namespace {
		return nil
	}
	need := images.Need{Verb: images.VerbGet, Project: repo.Project, App: repo.App}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	if mayUseImages(ctx, asker, serviceaccount.UserInfo(pod.Namespace, account, ""), need) {
		return nil
	}
	list, err := credentials()
	if err != nil {
		return err
	}
	for _, c := range list {
		token := c.Token
		if token == "" {
			token = c.Password
		}
		if u, ok := asker.whose(ctx, token); ok && mayUseImages(ctx, asker, u, need) {
			return nil
		}
	}
	return fmt.Errorf("service account %s of project %q may not pull from project %q: bind ClusterRole %s to it there",
		account, pod.Namespace, repo.Project, imagePullerRoleName)
}

// streamTransport hands requests to a handler as a user, without a socket. Unlike localTransport it passes answers on as they
// are written.
type streamTransport struct {
	handler http.Handler
	user    user.Info
}

// RoundTrip implements http.RoundTripper.
func (t streamTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(auth.InProcess(r.Context(), t.user))
	inner := r.Clone(ctx)
	inner.RemoteAddr, inner.RequestURI, inner.Host = "", r.URL.RequestURI(), r.URL.Host
	if inner.Body == nil {
		inner.Body = http.NoBody
	}
	reader, writer := io.Pipe()
	answer := &streamAnswer{header: http.Header{}, writer: writer, began: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if cause := recover(); cause != nil { // http.ErrAbortHandler: the answer is cut off
				_ = writer.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		t.handler.ServeHTTP(answer, inner)
		_ = inner.Body.Close()
		answer.WriteHeader(http.StatusOK)
		_ = writer.Close()
	}()
	body := &streamBody{PipeReader: reader, cancel: cancel, done: done}
	select {
	case <-answer.began:
	case <-done:
		select {
		case <-answer.began:
		default:
			cancel()
			return nil, io.ErrUnexpectedEOF
		}
	case <-ctx.Done():
		_ = body.Close()
		return nil, r.Context().Err()
	}
	length := int64(-1)
	if text := answer.sent.Get("Content-Length"); text != "" {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			length = n
		}
	}
	return &http.Response{
		Status: strconv.Itoa(answer.code) + " " + http.StatusText(answer.code), StatusCode: answer.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: answer.sent, Request: r, Body: body, ContentLength: length,
	}, nil
}

// streamBody ends the handler when it is closed, and waits for it.
type streamBody struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   <-chan struct{}
}

// Close implements io.Closer.
func (b *streamBody) Close() error {
	b.cancel()
	err := b.PipeReader.Close()
	<-b.done
	return err
}

// streamAnswer implements http.ResponseWriter.
type streamAnswer struct {
	header http.Header
	writer *io.PipeWriter

	once  sync.Once
	code  int
	sent  http.Header   // as they were when the answer began
	began chan struct{} // closed when code and sent are set
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
		close(a.began)
	})
}

// Write implements http.ResponseWriter.
func (a *streamAnswer) Write(data []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.writer.Write(data)
}

// Flush implements http.Flusher: what was written is there already.
func (a *streamAnswer) Flush() { a.WriteHeader(http.StatusOK) }
