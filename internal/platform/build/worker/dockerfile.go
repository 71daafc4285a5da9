//go:build linux

package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"gantry.dev/gantry/internal/platform/build/job"
)

// solve is a Dockerfile with what it may use.
type solve struct {
	request    job.Request
	context    string            // folder
	dockerfile string            // folder of the Dockerfile
	file       string            // its name
	extra      map[string]string // further folders by the name that COPY --from takes
}

// dockerfileImage builds with BuildKit, pushes by digest and returns that, and the base images with their digests.
func (e *engine) dockerfileImage(ctx context.Context, s solve, out *reporter) (string, []material, error) {
	c, err := e.buildkit(ctx)
	if err != nil {
		return "", nil, err
	}
	opt, err := e.solveOptions(s)
	if err != nil {
		return "", nil, err
	}
	status := make(chan *client.SolveStatus)
	seen := newProgress(out)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for update := range status {
			seen.update(update)
		}
	}()
	response, err := c.Solve(ctx, nil, opt, status)
	<-done
	if err != nil {
		return "", nil, err
	}
	sum := response.ExporterResponse["containerimage.digest"]
	if sum == "" {
		return "", nil, errors.New("the build engine named no image")
	}
	return sum, seen.bases(), nil
}

func (e *engine) solveOptions(s solve) (client.SolveOpt, error) {
	r := s.request
	attrs := map[string]string{
		"filename":                    s.file,
		"build-arg:SOURCE_DATE_EPOCH": strconv.FormatInt(epoch(r).Unix(), 10),
		"label:" + labelRevision:      r.Commit,
	}
	if r.Commit == "" {
		delete(attrs, "label:"+labelRevision)
	}
	for key, value := range r.Args {
		attrs["build-arg:"+key] = value
	}
	mounts := map[string]fsutil.FS{}
	folders := map[string]string{"context": s.context, "dockerfile": s.dockerfile}
	for key, dir := range s.extra {
		folders[key] = dir
		attrs["context:"+key] = "local:" + key
	}
	for key, dir := range folders {
		tree, err := fsutil.NewFS(dir)
		if err != nil {
			return client.SolveOpt{}, fmt.Errorf("opening the source: %w", err)
		}
		mounts[key] = tree
	}
	return client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: mounts, SharedKey: r.Repository,
		Session: []session.Attachable{secretsprovider.FromMap(r.Secrets)},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": r.Repository, "push": "true", "push-by-digest": "true", "oci-mediatypes": "true", "rewrite-timestamp": "true",
		}}},
	}, nil
}

// progress turns what BuildKit reports into events.
type progress struct {
	out   *reporter
	names map[digest.Digest]string
	state map[digest.Digest]string
	rest  map[digest.Digest][]byte // of a line that has not ended
	base  []material
}

func newProgress(out *reporter) *progress {
	return &progress{out: out, names: map[digest.Digest]string{}, state: map[digest.Digest]string{}, rest: map[digest.Digest][]byte{}}
}

// maxLine is where a line of output is cut in two.
const maxLine = 16 << 10

var (
	stepName = regexp.MustCompile(`^\[([^\]]+)\] (.*)$`)
	baseName = regexp.MustCompile(`FROM (\S+)@(sha256:[0-9a-f]{64})$`)
)

func (p *progress) update(update *client.SolveStatus) {
	for _, v := range update.Vertexes {
		name, step := stepOf(v.Name)
		p.names[v.Digest] = name
		if base := baseName.FindStringSubmatch(v.Name); base != nil && v.Completed != nil {
			p.base = append(p.base, material{URI: "docker-image://" + base[1], Digest: strings.TrimPrefix(base[2], "sha256:")})
		}
		state := "started"
		switch {
		case v.Started == nil || !step:
			continue
		case v.Cached:
			state = "cached"
		}
		if p.state[v.Digest] != state && p.state[v.Digest] != "cached" {
			p.state[v.Digest] = state
			p.out.say(job.Event{Type: job.Step, Text: name, Cached: v.Cached})
		}
	}
	for _, l := range update.Logs {
		p.log(l)
	}
	for _, w := range update.Warnings {
		event := job.Event{Type: job.Warn, Text: string(w.Short)}
		if w.SourceInfo != nil {
			event.File = w.SourceInfo.Filename
		}
		if len(w.Range) > 0 {
			event.Line = int(w.Range[0].Start.Line)
		}
		p.out.say(event)
	}
}

// stepOf makes "4/7 RUN go build" of "[4/7] RUN go build"; other vertexes are no steps of the Dockerfile.
func stepOf(vertex string) (string, bool) {
	parts := stepName.FindStringSubmatch(vertex)
	if parts == nil || parts[1] == "internal" || strings.HasPrefix(parts[1], "auth") {
		return vertex, false
	}
	return parts[1] + " " + parts[2], true
}

func (p *progress) log(l *client.VertexLog) {
	data := append(p.rest[l.Vertex], l.Data...)
	for {
		end := bytes.IndexByte(data, '\n')
		if end < 0 && len(data) < maxLine {
			break
		}
		if end < 0 || end > maxLine {
			end = maxLine
			p.line(l, data[:end])
			data = data[end:]
			continue
		}
		p.line(l, bytes.TrimSuffix(data[:end], []byte("\r")))
		data = data[end+1:]
	}
	p.rest[l.Vertex] = data
}

func (p *progress) line(l *client.VertexLog, text []byte) {
	p.out.say(job.Event{Type: job.Log, Text: strings.ToValidUTF8(string(text), "\uFFFD"), Step: p.names[l.Vertex], Stderr: l.Stream == 2})
}

// bases are the images that the build began with.
func (p *progress) bases() []material {
	for vertex, rest := range p.rest {
		if len(rest) > 0 {
			p.line(&client.VertexLog{Vertex: vertex}, rest)
		}
	}
	return p.base
}

// userError is a failure that the author of the source can act on.
type userError struct {
	text string
	file string
	line int
	exit int
}

func (e *userError) Error() string { return e.text }

// failure says what failed and where.
func failure(err error) job.Event {
	event := job.Event{Type: job.Failed}
	if known, ok := errors.AsType[*userError](err); ok {
		event.Text, event.File, event.Line, event.Exit = known.text, known.file, known.line, known.exit
		return event
	}
	command := ""
	if sources := errdefs.Sources(err); len(sources) > 0 {
		last := sources[len(sources)-1]
		if last.Info != nil && len(last.Ranges) > 0 && last.Ranges[0].Start != nil {
			event.File, event.Line = last.Info.Filename, int(last.Ranges[0].Start.Line)
			command = lineOf(last.Info.Data, event.Line)
		}
	}
	cause := err.Error()
	if exit, ok := errors.AsType[*gatewaypb.ExitError](err); ok {
		event.Exit = int(exit.ExitCode)
		if event.Exit > 255 || event.Exit < 0 {
			event.Exit = 0
		}
		if event.Exit != 0 {
			cause = "exit code " + strconv.Itoa(event.Exit)
		}
		if event.Exit == 137 {
			cause += " (killed, as the kernel does when memory runs out)"
		}
	}
	cause = strings.TrimPrefix(cause, "failed to solve: ")
	if event.File != "" {
		event.Text = fmt.Sprintf("%s:%d: %s: %s", event.File, event.Line, command, cause)
	} else {
		event.Text = cause
	}
	return event
}

// lineOf is one line of a text, shortened.
func lineOf(text []byte, number int) string {
	lines := bytes.Split(text, []byte("\n"))
	if number < 1 || number > len(lines) {
		return ""
	}
	line := strings.TrimSpace(string(lines[number-1]))
	if len(line) > 200 {
		line = line[:200] + "…"
	}
	return line
}

// dockerfileOf splits the path of a Dockerfile below a folder.
func dockerfileOf(dir, file string) (folder, name string) {
	if file == "" {
		file = "Dockerfile"
	}
	return filepath.Join(dir, filepath.FromSlash(path.Dir(file))), path.Base(file)
}
