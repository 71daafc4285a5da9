package git

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"

	"gantry.dev/gantry/internal/platform/deploy"
)

// Prefix is where repositories are on the API's port: /git/PROJECT/APP.git.
const Prefix = "/git/"

const (
	service        = "git-receive-pack"
	noThin         = capability.Capability("no-thin")
	defaultQuota   = 1 << 30
	defaultFiles   = 100_000
	defaultTree    = 512 << 20
	defaultTimeout = 30 * time.Minute
)

// Options tune a Handler. Dir is required.
type Options struct {
	Dir      string        // of the repositories
	MaxBytes int64         // of one repository on disk; default 1 GiB
	MaxTree  int64         // of the files of one commit; default 512 MiB
	MaxFiles int           // of one commit; default 100,000
	Timeout  time.Duration // of one push; default half an hour
	Log      *slog.Logger
}

// Handler serves repositories. Make one with New.
type Handler struct {
	opts  Options
	mu    sync.Mutex
	locks map[string]chan struct{} // by repository; who holds one pushes
}

// New checks opts and returns a Handler.
func New(opts Options) (*Handler, error) {
	if opts.Dir == "" {
		return nil, errors.New("git: Options need a Dir")
	}
	if opts.MaxBytes < 0 || opts.MaxTree < 0 || opts.MaxFiles < 0 || opts.Timeout < 0 {
		return nil, errors.New("git: Options have a negative limit")
	}
	opts.MaxBytes, opts.MaxTree = cmp.Or(opts.MaxBytes, defaultQuota), cmp.Or(opts.MaxTree, defaultTree)
	opts.MaxFiles, opts.Timeout = cmp.Or(opts.MaxFiles, defaultFiles), cmp.Or(opts.Timeout, defaultTimeout)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{opts: opts, locks: map[string]chan struct{}{}}, nil
}

// Target is the repository that a path names.
type Target struct {
	Project, App string
	rest         string
}

// Parse reads /git/PROJECT/APP.git/….
func Parse(path string) (Target, bool) {
	inside, ok := strings.CutPrefix(path, Prefix)
	if !ok {
		return Target{}, false
	}
	parts := strings.SplitN(inside, "/", 3)
	if len(parts) < 3 {
		return Target{}, false
	}
	name, ok := strings.CutSuffix(parts[1], ".git")
	return Target{parts[0], name, parts[2]}, ok && isName(parts[0]) && isName(name)
}

// isName tells names of projects and applications, which are folders here.
func isName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// Pusher is who pushes, with whose rights the deploy is done.
type Pusher struct {
	Name    string
	Cluster *deploy.Cluster
}

// Serve answers a request of somebody who may deploy the application.
func (h *Handler) Serve(w http.ResponseWriter, r *http.Request, target Target, who Pusher) {
	w.Header().Set("Cache-Control", "no-cache")
	switch {
	case target.rest == "info/refs" && r.Method == http.MethodGet && r.URL.Query().Get("service") == service:
		h.advertise(w, target)
	case target.rest == service && r.Method == http.MethodPost:
		h.receive(w, r, target, who)
	case target.rest == "info/refs" || target.rest == "git-upload-pack":
		http.Error(w, "this repository only takes pushes", http.StatusForbidden)
	default:
		http.NotFound(w, r)
	}
}

func (h *Handler) repository(t Target) *repository {
	return &repository{dir: filepath.Join(h.opts.Dir, t.Project, t.App+".git")}
}

// advertise says what the branch is and what this server can do. Packs must be whole (no-thin): each is looked at by itself.
func (h *Handler) advertise(w http.ResponseWriter, target Target) {
	refs := packp.NewAdvRefs()
	refs.Prefix = [][]byte{[]byte("# service=" + service), pktline.Flush}
	for _, one := range []capability.Capability{capability.ReportStatus, capability.OFSDelta, capability.Sideband64k, noThin} {
		if err := refs.Capabilities.Set(one); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	if err := refs.Capabilities.Set(capability.Agent, "gantry"); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	heads, err := h.repository(target).heads()
	if err != nil {
		h.opts.Log.Error("reading a repository", "namespace", target.Project, "name", target.App, "error", err)
		http.Error(w, "the repository cannot be read", http.StatusInternalServerError)
		return
	}
	for name, hash := range heads {
		refs.References[name] = hash
	}
	w.Header().Set("Content-Type", "application/x-"+service+"-advertisement")
	_ = refs.Encode(w)
}

// receive takes a push: all of it is read before the first word of the answer.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, target Target, who Pusher) {
	control := http.NewResponseController(w)
	deadline := time.Now().Add(h.opts.Timeout + time.Minute)
	_, _ = control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline) // a server without deadlines has none to change
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, "the body is not compressed with gzip", http.StatusBadRequest)
			return
		}
		body = unpacked
	}
	w.Header().Set("Content-Type", "application/x-"+service+"-result")
	buffered := bufio.NewReader(body)
	if begin, err := buffered.Peek(5); errors.Is(err, io.EOF) && string(begin) == "0000" {
		return // before a large push, git tries whether it is let in
	}
	body = buffered
	request := packp.NewReferenceUpdateRequest()
	if err := request.Decode(body); err != nil {
		http.Error(w, "this is no push: "+err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.opts.Timeout)
	defer cancel()
	answer := &answer{w: w, control: control, bands: request.Capabilities.Supports(capability.Sideband64k), report: request.Capabilities.Supports(capability.ReportStatus)}
	p := &push{handler: h, repository: h.repository(target), target: target, who: who, request: request, say: answer.say}
	reason := p.run(ctx)
	if reason != nil && !errors.Is(reason, errSaid) {
		answer.say("%s", reason)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 1<<20)) // so that the client reads the answer
	answer.end(request, reason)
}

// answer is what the pusher sees.
type answer struct {
	w             io.Writer
	control       *http.ResponseController
	bands, report bool
	mu            sync.Mutex
}

// say shows lines to the pusher. git puts "remote:" before each.
func (a *answer) say(format string, args ...any) {
	if !a.bands {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n") + "\n"
	if _, err := sideband.NewMuxer(sideband.Sideband64k, a.w).WriteChannel(sideband.ProgressMessage, []byte(text)); err == nil {
		_ = a.control.Flush()
	}
}

// end tells git of each branch whether it was taken.
func (a *answer) end(request *packp.ReferenceUpdateRequest, reason error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.report {
		return
	}
	status := packp.NewReportStatus()
	status.UnpackStatus = "ok"
	for _, command := range request.Commands {
		one := &packp.CommandStatus{ReferenceName: command.Name, Status: "ok"}
		if reason != nil {
			one.Status = short(reason)
		}
		status.CommandStatuses = append(status.CommandStatuses, one)
	}
	if !a.bands {
		_ = status.Encode(a.w)
		return
	}
	if err := status.Encode(sideband.NewMuxer(sideband.Sideband64k, a.w)); err != nil {
		return
	}
	_ = pktline.NewEncoder(a.w).Flush()
}

// short is the first line of a reason: git prints it in brackets.
func short(reason error) string {
	if said, ok := errors.AsType[*refusal](reason); ok {
		return said.short
	}
	line, _, _ := strings.Cut(reason.Error(), "\n")
	return line
}

// acquire waits until no other push goes on for a repository. The function that it returns ends ours.
func (h *Handler) acquire(ctx context.Context, dir string, waits func()) (func(), error) {
	h.mu.Lock()
	lock := h.locks[dir]
	if lock == nil {
		lock = make(chan struct{}, 1)
		h.locks[dir] = lock
	}
	h.mu.Unlock()
	release := func() { <-lock }
	select {
	case lock <- struct{}{}:
		return release, nil
	default:
	}
	waits()
	select {
	case lock <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another push: %w", ctx.Err())
	}
}
