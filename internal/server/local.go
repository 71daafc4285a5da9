package server

import (
	"bytes"
	"io"
	"net/http"
	"strconv"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/api/auth"
)

// local gives a library of upstream's the API without a socket, as u. Answers are kept in memory as a whole: it is not
// for watches.
func (cp *ControlPlane) local(u user.Info, agent string) *rest.Config {
	return &rest.Config{Host: "https://gantry.invalid", Transport: localTransport{cp, u}, UserAgent: agent}
}

// localTransport hands requests to the API's handler.
type localTransport struct {
	cp   *ControlPlane
	user user.Info
}

// RoundTrip implements http.RoundTripper.
func (t localTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	inner := r.Clone(auth.InProcess(r.Context(), t.user))
	inner.RemoteAddr, inner.RequestURI, inner.Host = "", r.URL.RequestURI(), r.URL.Host
	if inner.Body == nil {
		inner.Body = http.NoBody
	}
	answer := &localAnswer{header: http.Header{}, code: http.StatusOK}
	t.cp.handler.ServeHTTP(answer, inner)
	_ = inner.Body.Close()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: strconv.Itoa(answer.code) + " " + http.StatusText(answer.code), StatusCode: answer.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: answer.header, Request: r,
		Body: io.NopCloser(&answer.body), ContentLength: int64(answer.body.Len()),
	}, nil
}

// localAnswer keeps an answer.
type localAnswer struct {
	header http.Header
	code   int
	wrote  bool
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *localAnswer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *localAnswer) WriteHeader(code int) {
	if !a.wrote && code >= http.StatusOK {
		a.code, a.wrote = code, true
	}
}

// Write implements http.ResponseWriter.
func (a *localAnswer) Write(data []byte) (int, error) {
	a.wrote = true
	return a.body.Write(data)
}
