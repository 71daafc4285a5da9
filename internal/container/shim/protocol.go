package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// logScheme marks a stdout address that this shim handles itself.
const logScheme = "gantry-log"

// ExitFile is the name of the file in a container's bundle that says how it ended. It
// holds an Exit in JSON and is there only after the end.
const ExitFile = "exit.json"

// Log says where the output of a container goes.
type Log struct {
	Path      string // absolute; "" keeps no log
	MaxBytes  int64
	MaxFiles  int
	Stdin     bool // the container has a stdin that attach can write to
	StdinOnce bool // which ends with the first attach session
}

// LogURI returns the stdout address of a task whose output the shim shall write to a log.
func LogURI(log Log) string {
	query := url.Values{}
	query.Set("max", strconv.FormatInt(log.MaxBytes, 10))
	query.Set("files", strconv.Itoa(log.MaxFiles))
	query.Set("stdin", strconv.FormatBool(log.Stdin))
	query.Set("once", strconv.FormatBool(log.StdinOnce))
	address := url.URL{Scheme: logScheme, Path: log.Path, RawQuery: query.Encode()}
	return address.String()
}

// parseLogURI is the inverse of LogURI; ok is false for addresses of other schemes.
func parseLogURI(address string) (log Log, ok bool, err error) {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Scheme != logScheme {
		return Log{}, false, nil //nolint:nilerr // what is no URL is a plain path
	}
	query := parsed.Query()
	log.Path = parsed.Path
	log.Stdin = query.Get("stdin") == "true"
	log.StdinOnce = query.Get("once") == "true"
	if log.MaxBytes, err = strconv.ParseInt(query.Get("max"), 10, 64); err != nil {
		return Log{}, true, fmt.Errorf("log address %q: max: %w", address, err)
	}
	if log.MaxFiles, err = strconv.Atoi(query.Get("files")); err != nil {
		return Log{}, true, fmt.Errorf("log address %q: files: %w", address, err)
	}
	return log, true, nil
}

// Exit is how a container ended.
type Exit struct {
	Code int       `json:"code"` // 128+n when signal n ended it
	At   time.Time `json:"at"`
	OOM  bool      `json:"oom"` // the kernel killed one of its processes for memory

	Fenced bool `json:"fenced,omitempty"` // the shim killed it because its node was cut off
}

// ReadExit reads the exit record of a bundle. The error is os.ErrNotExist while the
// container has not ended.
func ReadExit(bundle string) (Exit, error) {
	data, err := os.ReadFile(filepath.Join(bundle, ExitFile))
	if err != nil {
		return Exit{}, err
	}
	var exit Exit
	if err := json.Unmarshal(data, &exit); err != nil {
		return Exit{}, fmt.Errorf("read exit record: %w", err)
	}
	return exit, nil
}

// WriteExit writes the exit record of a bundle in one step. It is not synced: a record
// need only outlive processes, since containers do not outlive the machine.
func WriteExit(bundle string, exit Exit) error {
	data, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	path := filepath.Join(bundle, ExitFile)
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("write exit record: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// hello is the first line a client sends on the stream socket.
type hello struct {
	Op        string        `json:"op"` // "events", "attach" or "fence"
	Container string        `json:"container,omitempty"`
	Stdin     bool          `json:"stdin,omitempty"`
	At        time.Duration `json:"at,omitempty"` // of a fence: nanoseconds since the boot; 0 is never
}

// reply is the line that answers a hello.
type reply struct {
	Error string `json:"error,omitempty"`
	Fired bool   `json:"fired,omitempty"` // the fence's time has passed
}

// The types of an Event.
const (
	EventOOM    = "oom"    // a process of the container was killed for memory
	EventExited = "exited" // the container has ended and its output is in the log
	EventSynced = "synced" // everything that was so before the client came has been sent
)

// Event is one line of the event stream. A new client is told first what is already so.
type Event struct {
	Type      string `json:"type"`
	Container string `json:"container,omitempty"`
	Exit      *Exit  `json:"exit,omitempty"`
}

// The kinds of frames in an attach session.
const (
	frameStdin      = 0 // client to shim
	frameStdout     = 1 // shim to client
	frameStderr     = 2 // shim to client
	frameResize     = 3 // client to shim: width and height, two bytes each
	frameCloseStdin = 4 // client to shim
)

// maxFrame bounds the payload of one frame.
const maxFrame = 64 << 10

var errFrameTooLong = errors.New("frame is too long")

// writeFrame writes one frame: its kind, the length in four bytes, the payload. It makes
// one call to w.
func writeFrame(w io.Writer, kind byte, payload []byte) error {
	frame := make([]byte, 5+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	copy(frame[5:], payload)
	_, err := w.Write(frame)
	return err
}

// readFrame reads one frame into buf, which is grown as needed, and returns its payload.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, nil, errFrameTooLong
	}
	if int(size) > cap(buf) {
		buf = make([]byte, size)
	}
	payload = buf[:size]
	_, err = io.ReadFull(r, payload)
	return head[0], payload, err
}
