package nodeapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // the type that client-go still speaks
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"

	"gantry.dev/gantry/internal/agent/nodeapi"
	"gantry.dev/gantry/internal/container"
)

type pods []*corev1.Pod

func (p pods) Pods() []*corev1.Pod { return p }

func (p pods) Pod(namespace, name string) (*corev1.Pod, bool) {
	for _, pod := range p {
		if pod.Namespace == namespace && pod.Name == name {
			return pod, true
		}
	}
	return nil, false
}

// shell answers "cat" with its input, "fail" with exit code 3, and says its terminal's size.
type shell struct{}

func (shell) Exec(_ context.Context, id string, cmd []string, s container.Streams) (int, error) {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	case "size":
		size := <-s.Resize
		fmt.Fprintf(s.Stdout, "%dx%d", size.Width, size.Height)
		return 0, nil
	case "fail":
		fmt.Fprint(s.Stderr, "no")
		return 3, nil
	case "error":
		return 0, errors.New("no process")
	}
	fmt.Fprintf(s.Stdout, "%s in %s", strings.Join(cmd, " "), id)
	return 0, nil
}

func (shell) Attach(_ context.Context, id string, s container.Streams) error {
	fmt.Fprintf(s.Stdout, "attached to %s", id)
	return nil
}

func webPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}, {Name: "waits"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
			{
				Name: "main", ContainerID: "containerd://c2", RestartCount: 2,
				State:                corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://c1"}},
			},
			{Name: "waits", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
		}},
	}
}

func serve(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	dir := t.TempDir()
	h, err := nodeapi.New(pods{webPod()}, shell{}, nodeapi.Options{
		NodeName: "node-1",
		DialPod: func(ctx context.Context, _ *corev1.Pod, port int32) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		},
		LogFile: func(_ *corev1.Pod, name string, attempt int) string {
			return filepath.Join(dir, fmt.Sprintf("%s-%d.log", name, attempt))
		},
		LogAttempts: func(*corev1.Pod, string) []int { return []int{0, 2} },
		Stats:       statsOf(t, dir), Probes: probeCounts, Cores: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server, dir
}

func execURL(t *testing.T, server *httptest.Server, verb, query string) *url.URL {
	t.Helper()
	u, err := url.Parse(server.URL + "/" + verb + "/default/web/main?" + query)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// executors are the two transports that clients use.
func executors(t *testing.T, u *url.URL) map[string]remotecommand.Executor {
	t.Helper()
	config := &rest.Config{Host: u.Host}
	spdyExec, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	wsExec, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, u.String())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"SPDY": spdyExec, "WebSocket": wsExec}
}

func TestExec(t *testing.T) {
	server, _ := serve(t)
	for name, executor := range executors(t, execURL(t, server, "exec", "command=echo&command=hi&output=1")) {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "echo hi in c2" {
				t.Errorf("exec wrote %q, %v", out.String(), err)
			}
		})
	}
	for name, executor := range executors(t, execURL(t, server, "exec", "command=cat&input=1&output=1")) {
		t.Run(name+" with stdin", func(t *testing.T) {
			var out bytes.Buffer
			text := strings.Repeat("line\n", 20000)
			if err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out}); err != nil || out.String() != text {
				t.Errorf("cat wrote %d bytes, want %d; %v", out.Len(), len(text), err)
			}
		})
	}
	for name, executor := range executors(t, execURL(t, server, "exec", "command=fail&output=1&error=1")) {
		t.Run(name+" failing", func(t *testing.T) {
			var errOut bytes.Buffer
			err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: &errOut})
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 3 || errOut.String() != "no" {
				t.Errorf("ended with %v and %q, want exit code 3 and \"no\"", err, errOut.String())
			}
		})
	}
	for name, executor := range executors(t, execURL(t, server, "exec", "command=error&output=1")) {
		t.Run(name+" without process", func(t *testing.T) {
			err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), "no process") {
				t.Errorf("ended with %v", err)
			}
		})
	}
	for name, executor := range executors(t, execURL(t, server, "exec", "command=size&input=1&output=1&tty=1")) {
		t.Run(name+" with terminal", func(t *testing.T) {
			var out bytes.Buffer
			in, keep := io.Pipe()
			defer keep.Close()
			err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}})
			if err != nil || out.String() != "80x24" {
				t.Errorf("the terminal is %q, %v", out.String(), err)
			}
		})
	}
	for name, executor := range executors(t, execURL(t, server, "attach", "output=1")) {
		t.Run(name+" attach", func(t *testing.T) {
			var out bytes.Buffer
			if err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "attached to c2" {
				t.Errorf("attach wrote %q, %v", out.String(), err)
			}
		})
	}
}

type oneSize struct{ told bool }

func (o *oneSize) Next() *remotecommand.TerminalSize {
	if o.told {
		return nil
	}
	o.told = true
	return &remotecommand.TerminalSize{Width: 80, Height: 24}
}

func TestPortForward(t *testing.T) {
	server, _ := serve(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer backend.Close()
	port := backend.Listener.Addr().(*net.TCPAddr).Port
	u, err := url.Parse(server.URL + "/portForward/default/web")
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: u.Host}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		t.Fatal(err)
	}
	overSPDY := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	overWebSocket, err := portforward.NewSPDYOverWebsocketDialer(u, config)
	if err != nil {
		t.Fatal(err)
	}
	for name, dialer := range map[string]httpstream.Dialer{
		"SPDY": overSPDY, "WebSocket": overWebSocket,
	} {
		t.Run(name, func(t *testing.T) {
			stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			go func() { done <- forwarder.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatalf("forwarding ended with %v", err)
			}
			ports, err := forwarder.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if string(body) != "hello" {
				t.Errorf("the answer is %q", body)
			}
			close(stop)
			if err := <-done; err != nil {
				t.Errorf("forwarding ended with %v", err)
			}
		})
	}
}

func get(t *testing.T, server *httptest.Server, path string) (int, string) {
	t.Helper()
	response, err := http.Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(body))
}

func TestLogs(t *testing.T) {
	server, dir := serve(t)
	log := "2026-01-02T03:04:05.000000001Z stdout F one\n2026-01-02T03:04:06Z stderr P tw\n2026-01-02T03:04:06Z stderr F o\n2026-01-02T03:04:07Z stdout F three\n"
	if err := os.WriteFile(filepath.Join(dir, "main-2.log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main-0.log"), []byte("2026-01-02T03:04:05Z stdout F before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path, want string
		code       int
	}{
		"all":        {"main", "one\ntwo\nthree", 200},
		"tail":       {"main?tailLines=1", "three", 200},
		"bytes":      {"main?limitBytes=5", "one\nt", 200},
		"timestamps": {"main?timestamps=true&tailLines=2", "2026-01-02T03:04:06Z two\n2026-01-02T03:04:07Z three", 200},
		"since":      {"main?sinceTime=2026-01-02T03:04:07Z", "three", 200},
		"one stream": {"main?stream=Stderr", "two", 200},
		"previous":   {"main?previous=true", "before", 200},
		"waiting":    {"waits", `container "waits" in pod "web" is waiting to start: ContainerCreating`, 400},
		"unknown":    {"none", `container "none" not found in pod "web"`, 404},
		"bad query":  {"main?tailLines=-1", `{"message": "Invalid request."}`, 400},
	} {
		t.Run(name, func(t *testing.T) {
			if code, body := get(t, server, "/containerLogs/default/web/"+tc.path); code != tc.code || body != tc.want {
				t.Errorf("answer is %d %q, want %d %q", code, body, tc.code, tc.want)
			}
		})
	}
}
