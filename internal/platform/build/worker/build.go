//go:build linux

package worker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"gantry.dev/gantry/internal/platform/build/job"
	"gantry.dev/gantry/internal/platform/build/language"
	"gantry.dev/gantry/internal/platform/build/source"
)

const labelRevision = "org.opencontainers.image.revision"

// epoch is the time of files that a build makes.
func epoch(r job.Request) time.Time {
	if r.Time.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return r.Time.UTC().Truncate(time.Second)
}

// build makes the image of one request and returns its reference with digest.
func (e *engine) build(ctx context.Context, r job.Request, out *reporter) (string, error) {
	started := time.Now().UTC()
	e.images.use(r.Images)
	dir, remove, err := e.workDir()
	if err != nil {
		return "", err
	}
	defer remove()
	if r.Git != nil {
		err = e.clone(ctx, &r, dir, out)
	} else {
		err = e.fetch(ctx, r, dir)
	}
	if err != nil {
		return "", err
	}
	folder, err := within(dir, r.Path)
	if err != nil {
		return "", err
	}
	plan, err := e.plan(r, folder)
	if err != nil {
		return "", err
	}
	out.say(job.Event{Type: job.Found, Kind: plan.Kind, Text: plan.Found, Processes: plan.Processes})
	sum, bases, err := e.make(ctx, r, dir, folder, plan, out)
	if err != nil {
		return "", err
	}
	statement := provenance(r, plan.Kind, sum, bases, started)
	if err := e.attach(ctx, r, sum, statement); err != nil {
		return "", err
	}
	return r.Repository + "@" + sum, nil
}

// fetch unpacks the source into dir.
func (e *engine) fetch(ctx context.Context, r job.Request, dir string) error {
	repo, err := repository(cmp.Or(r.From, r.Repository))
	if err != nil {
		return err
	}
	layer, err := remote.Layer(repo.Digest(r.Source), e.images.options(ctx)...)
	if err != nil {
		return fmt.Errorf("fetching the source: %w", err)
	}
	blob, err := layer.Compressed() // verified against the digest while it is read
	if err != nil {
		return fmt.Errorf("fetching the source: %w", err)
	}
	defer blob.Close()
	err = source.Unpack(ctx, blob, dir, epoch(r), source.Limits{})
	if errors.Is(err, source.ErrUnsafe) || errors.Is(err, source.ErrTooLarge) {
		return &userError{text: err.Error()}
	}
	return err
}

// clone takes the source from a git repository, whose commit becomes that of the request.
func (e *engine) clone(ctx context.Context, r *job.Request, dir string, out *reporter) error {
	scratch, remove, err := e.workDir()
	if err != nil {
		return err
	}
	defer remove()
	out.say(job.Event{Type: job.Step, Text: "fetching " + r.Git.URL})
	from := source.Repository{URL: r.Git.URL, Ref: r.Git.Ref, User: r.Git.User, Password: r.Git.Password}
	fetched, err := source.Fetch(ctx, from, scratch, dir, r.Time, source.Limits{})
	if reason, ok := errors.AsType[*source.RefusedError](err); ok {
		return &userError{text: reason.Error()}
	}
	if errors.Is(err, source.ErrUnsafe) || errors.Is(err, source.ErrTooLarge) {
		return &userError{text: err.Error()}
	}
	if err != nil {
		return err
	}
	r.Commit = fetched.Commit
	if r.Time.IsZero() {
		r.Time = fetched.Time
	}
	for _, note := range fetched.Notes {
		out.say(job.Event{Type: job.Warn, Text: note})
	}
	out.say(job.Event{Type: job.Commit, Text: fetched.Commit})
	return nil
}

// within returns the folder below dir; links on the way must not lead out of it.
func within(dir, folder string) (string, error) {
	if folder = cmp.Or(filepath.ToSlash(filepath.Clean(folder)), "."); !fs.ValidPath(folder) {
		return "", &userError{text: fmt.Sprintf("path %q is not a folder of the source", folder)}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("opening the source: %w", err)
	}
	defer root.Close()
	if info, err := root.Stat(folder); err != nil || !info.IsDir() {
		return "", &userError{text: fmt.Sprintf("the source has no folder %s", folder)}
	}
	resolved, err := filepath.EvalSymlinks(filepath.Join(dir, folder))
	if err != nil {
		return "", fmt.Errorf("opening the source: %w", err)
	}
	return resolved, nil
}

// plan finds out how to build, if the request does not say.
func (e *engine) plan(r job.Request, folder string) (language.Plan, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return language.Plan{}, fmt.Errorf("opening the source: %w", err)
	}
	defer root.Close()
	plan, err := language.Detect(root.FS(), language.Options{Kind: r.Kind, Dockerfile: r.File, Bases: e.setup.Bases, Args: r.Args, Secrets: sortedKeys(r.Secrets)})
	if err != nil {
		return language.Plan{}, &userError{text: err.Error()}
	}
	return plan, nil
}

func sortedKeys(m map[string][]byte) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// make builds and pushes.
func (e *engine) make(ctx context.Context, r job.Request, tree, folder string, plan language.Plan, out *reporter) (string, []material, error) {
	switch plan.Kind {
	case language.Go:
		return e.goImage(ctx, r, tree, filepath.Join(folder, filepath.FromSlash(plan.Main)), out)
	case language.Static:
		return e.staticImage(ctx, r, filepath.Join(folder, filepath.FromSlash(plan.Folder)), out)
	}
	s := solve{request: r, context: folder, extra: map[string]string{}}
	s.dockerfile, s.file = dockerfileOf(folder, r.File)
	if plan.Dockerfile != "" {
		dir, remove, err := e.workDir()
		if err != nil {
			return "", nil, err
		}
		defer remove()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(plan.Dockerfile), 0o600); err != nil {
			return "", nil, fmt.Errorf("writing the generated Dockerfile: %w", err)
		}
		s.dockerfile, s.file = dir, "Dockerfile"
		if plan.NeedsServer {
			files := filepath.Join(dir, "server")
			if err := e.copyServer(files); err != nil {
				return "", nil, err
			}
			s.extra["gantry-static"] = files
		}
	}
	return e.dockerfileImage(ctx, s, out)
}

// copyServer puts the static file server into a folder of its own.
func (e *engine) copyServer(dir string) error {
	data, err := e.serverProgram()
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("copying the file server: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "gantry-static"), data, 0o755); err != nil {
		return fmt.Errorf("copying the file server: %w", err)
	}
	return nil
}

func (e *engine) serverProgram() ([]byte, error) {
	if e.setup.Static == "" {
		return nil, errors.New("the file server for static sites is not built in: run 'make build', which builds and embeds it")
	}
	data, err := os.ReadFile(e.setup.Static)
	if err != nil {
		return nil, fmt.Errorf("reading the file server: %w", err)
	}
	return data, nil
}

// hide returns a function that replaces secrets in a text, whole lines of them too.
func hide(secrets map[string][]byte) func(string) string {
	var pairs []string
	for _, value := range secrets {
		for line := range bytes.Lines(value) {
			if text := strings.TrimSpace(string(line)); len(text) >= 4 {
				pairs = append(pairs, text)
			}
		}
	}
	// The longest first: one may hold another.
	slices.SortFunc(pairs, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var replace []string
	for _, text := range pairs {
		replace = append(replace, text, "•••")
	}
	return strings.NewReplacer(replace...).Replace
}
