//go:build linux

package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"gantry.dev/gantry/internal/container"
)

func TestLogURI(t *testing.T) {
	want := Log{Path: "/var/log/pods/a b_ü?/0.log", MaxBytes: 5, MaxFiles: 7, Stdin: true, StdinOnce: true}
	got, ours, err := parseLogURI(LogURI(want))
	if got != want || !ours || err != nil {
		t.Errorf("parseLogURI(LogURI(%+v)) = %+v, %v, %v", want, got, ours, err)
	}
	for _, other := range []string{"", "/a/fifo", "file:///x", "binary:///x?y"} {
		if _, ours, err := parseLogURI(other); ours || err != nil {
			t.Errorf("parseLogURI(%q) = %v, %v; want not ours", other, ours, err)
		}
	}
}

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	for _, text := range []string{"", "hello", strings.Repeat("x", maxFrame)} {
		if err := writeFrame(&buf, frameStderr, []byte(text)); err != nil {
			t.Fatal(err)
		}
		kind, payload, err := readFrame(&buf, nil)
		if kind != frameStderr || string(payload) != text || err != nil {
			t.Errorf("frame of %d bytes came back as kind %d, %d bytes, %v", len(text), kind, len(payload), err)
		}
	}
	if _, _, err := readFrame(bytes.NewReader([]byte{1, 255, 255, 255, 255}), nil); !errors.Is(err, errFrameTooLong) {
		t.Errorf("readFrame of a huge frame: %v", err)
	}
	if _, _, err := readFrame(bytes.NewReader([]byte{1, 0, 0, 0, 9, 1}), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("readFrame of half a frame: %v", err)
	}
}

func TestExitRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ReadExit before the end: %v", err)
	}
	want := Exit{Code: 137, At: time.Unix(1700000000, 5).UTC(), OOM: true}
	if err := WriteExit(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadExit(dir); got != want || err != nil {
		t.Errorf("ReadExit = %+v, %v; want %+v", got, err, want)
	}
}

// fakeTasks stands in for containerd's task service: it creates nothing.
type fakeTasks struct{ taskAPI.TTRPCTaskService }

func (fakeTasks) Create(context.Context, *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	return &taskAPI.CreateTaskResponse{Pid: 1 << 30}, nil
}

func (fakeTasks) Delete(context.Context, *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	return &taskAPI.DeleteResponse{}, nil
}

func (fakeTasks) CloseIO(context.Context, *taskAPI.CloseIORequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// newContainer makes a container of which the test is the process: it returns the write
// end of its stdout.
func newContainer(t *testing.T, tk *tasks, log string) *os.File {
	t.Helper()
	bundle := t.TempDir()
	request := &taskAPI.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: LogURI(Log{Path: log, MaxBytes: 1 << 20, MaxFiles: 2})}
	if _, err := tk.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(request.Stdout, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := os.OpenFile(request.Stderr, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stderr.Close(); _ = pipe.Close() })
	return pipe
}

// TestSlowAttachDoesNotBlockTheLog attaches a client that never reads.
func TestSlowAttachDoesNotBlockTheLog(t *testing.T) {
	tk := newTasks(func() {})
	tk.TTRPCTaskService = fakeTasks{}
	log := filepath.Join(t.TempDir(), "0.log")
	stdout := newContainer(t, tk, log)
	client, server := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveStream(t.Context(), server, tk)
	}()
	if err := greet(client, hello{Op: "attach", Container: "c"}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 3)
	if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "{}\n" {
		t.Fatalf("answer %q, %v", answer, err)
	}
	const lines = 5000 // far more than a session queues
	for i := range lines {
		if _, err := fmt.Fprintf(stdout, "%d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		data, err := os.ReadFile(log)
		if err == nil && bytes.Count(data, []byte("\n")) == lines {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the log does not fill up while a client does not read")
		}
		time.Sleep(time.Millisecond)
	}
	_ = client.Close()
	<-served
	if _, err := tk.Delete(t.Context(), &taskAPI.DeleteRequest{ID: "c"}); err != nil {
		t.Error(err)
	}
}

// TestExitIsToldAfterTheOutput checks the order in which an end becomes known, and that a
// client that comes later is told as well.
func TestExitIsToldAfterTheOutput(t *testing.T) {
	tk := newTasks(func() {})
	tk.TTRPCTaskService = fakeTasks{}
	log := filepath.Join(t.TempDir(), "0.log")
	stdout := newContainer(t, tk, log)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveStreams(ctx, listener, tk)
	}()
	defer func() {
		cancel()
		_ = listener.Close()
		<-served
	}()
	if _, err := io.WriteString(stdout, "last words\n"); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1700000000, 0).UTC()
	for _, event := range []any{
		&eventstypes.TaskOOM{ContainerID: "c"},
		&eventstypes.TaskExit{ContainerID: "c", ID: "an exec", ExitStatus: 1, ExitedAt: timestamppb.New(at)},
		&eventstypes.TaskExit{ContainerID: "c", ID: "c", ExitStatus: 9, ExitedAt: timestamppb.New(at)},
	} {
		if err := tk.Publish(ctx, "", event); err != nil {
			t.Fatal(err)
		}
	}
	if err := stdout.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one comes when all is over
		var types []string
		watchCtx, stop := context.WithTimeout(ctx, 30*time.Second)
		err := Events(watchCtx, socket, func(event Event) {
			types = append(types, event.Type)
			if event.Type != EventExited {
				return
			}
			if *event.Exit != (Exit{Code: 9, At: at, OOM: true}) {
				t.Errorf("exit = %+v", *event.Exit)
			}
			if data, err := os.ReadFile(log); err != nil || !bytes.HasSuffix(data, []byte(" stdout F last words\n")) {
				t.Errorf("the end was told before the output was in the log: %q, %v", data, err)
			}
			stop()
		})
		stop()
		if err != nil || len(types) < 2 || types[0] != EventOOM {
			t.Errorf("events = %v, %v; want oom first", types, err)
		}
	}
	if err := Attach(ctx, socket, "c", container.Streams{}); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("Attach after the end: %v", err)
	}
	if err := Attach(ctx, socket, "nothing", container.Streams{}); err == nil {
		t.Error("Attach to what is not there succeeded")
	}
}

func TestMainRefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"start"}, {"serve"}, {"serve", "-nothing"}} {
		var stderr bytes.Buffer
		if code := Main(args, &stderr); code != 1 || stderr.Len() == 0 {
			t.Errorf("Main(%q) = %d, said %q", args, code, stderr.String())
		}
	}
}
