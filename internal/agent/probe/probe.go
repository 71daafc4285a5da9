package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Outcome is the answer to one probe.
type Outcome int

// The outcomes of a probe. A warning counts as success and is told as an event.
const (
	Failure Outcome = iota
	Success
	Warning
)

// Version is what probes say they are, after "kube-probe/".
const Version = "1.36"

const maxBody = 10 * 1024

// Dialer opens connections from the node.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Request makes the request of an httpGet action against a pod's address.
func Request(ctx context.Context, action *corev1.HTTPGetAction, c *corev1.Container, podIP, agent string) (*http.Request, error) {
	port, err := Port(action.Port, c)
	if err != nil {
		return nil, err
	}
	host := action.Host
	if host == "" {
		host = podIP
	}
	scheme := strings.ToLower(string(action.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(action.Path)
	if err != nil {
		u = &url.URL{Path: action.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range action.HTTPHeaders {
		request.Header.Add(h.Name, h.Value)
	}
	if _, ok := request.Header["User-Agent"]; !ok {
		request.Header.Set("User-Agent", "kube-"+agent+"/"+Version)
	}
	switch accept := request.Header.Values("Accept"); {
	case len(accept) == 0:
		request.Header.Set("Accept", "*/*")
	case len(accept) == 1 && accept[0] == "":
		request.Header.Del("Accept")
	}
	request.Host = request.Header.Get("Host")
	return request, nil
}

// Port resolves a port number or the name of a container's port.
func Port(port intstr.IntOrString, c *corev1.Container) (int, error) {
	if port.Type == intstr.Int {
		return checkPort(port.IntValue())
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return checkPort(int(p.ContainerPort))
		}
	}
	n, err := strconv.Atoi(port.StrVal)
	if err != nil {
		return 0, fmt.Errorf("couldn't find port: %q in container %q", port.StrVal, c.Name)
	}
	return checkPort(n)
}

func checkPort(n int) (int, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", n)
	}
	return n, nil
}

// Client is an HTTP client for probes and hooks: it checks no certificates, keeps no
// connection, and does not leave the host it asks.
func Client(dial Dialer, timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext:        dial,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // as the API defines probes
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,
		},
		CheckRedirect: func(request *http.Request, via []*http.Request) error {
			if request.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

// HTTP sends the request: 2xx and 3xx are well.
func HTTP(request *http.Request, client *http.Client) (Outcome, string) {
	response, err := client.Do(request)
	if err != nil {
		return Failure, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return Failure, err.Error()
	}
	switch code := response.StatusCode; {
	case code >= 300 && code < 400:
		return Warning, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body))
	case code >= 200 && code < 400:
		return Success, string(body)
	default:
		return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", code)
	}
}

// TCP opens a connection and closes it.
func TCP(ctx context.Context, dial Dialer, address string, timeout time.Duration) (Outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return Failure, err.Error()
	}
	_ = conn.Close()
	return Success, ""
}

// GRPC asks the health service of a server.
func GRPC(ctx context.Context, dial Dialer, address, service string, timeout time.Duration) (Outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "user-agent", "kube-probe/"+Version)
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithUserAgent("kube-probe/"+Version),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }))
	if err != nil {
		return Failure, fmt.Sprintf("error: failed to connect service at %q: %+v", address, err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return Failure, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
		case codes.DeadlineExceeded:
			return Failure, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
		case codes.Unavailable:
			return Failure, fmt.Sprintf("timeout: failed to connect service %q within %v: %+v", address, timeout, err)
		}
		return Failure, fmt.Sprintf("error: health rpc probe failed: %+v", err)
	}
	if answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Failure, fmt.Sprintf("service unhealthy (responded with %q)", answer.GetStatus().String())
	}
	return Success, "service healthy"
}

// Execer runs a command in a container and writes both its outputs to out.
type Execer func(ctx context.Context, cmd []string, out io.Writer) (exitCode int, err error)

// Exec runs a command: exit code 0 is well. An error means that nothing is known.
func Exec(ctx context.Context, run Execer, cmd []string, timeout time.Duration) (Outcome, string, error) {
	execCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out := &limited{max: maxBody}
	code, err := run(execCtx, cmd, out)
	switch {
	case execCtx.Err() != nil && ctx.Err() == nil:
		return Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(cmd, " "), timeout), nil
	case err != nil:
		return Failure, "", err
	case code != 0:
		return Failure, out.String(), nil
	default:
		return Success, out.String(), nil
	}
}

// limited keeps the first max bytes and swallows the rest.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
