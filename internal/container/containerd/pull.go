package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/internal/container"
)

// progressStep is how often a pull reports its progress.
const progressStep = 200 * time.Millisecond

// Pull fetches an image from its registry and unpacks it. Errors are *ImageError. The
// credentials are tried in order, as a pod may have several for one registry.
func (r *Runtime) Pull(ctx context.Context, ref string, opts container.PullOptions) (container.Image, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return container.Image{}, err
	}
	named, err := normalize(ref)
	if err != nil {
		return container.Image{}, err
	}
	attempts := opts.Credentials
	if len(attempts) == 0 {
		attempts = []container.Credentials{{}}
	}
	var failed error
	for _, credentials := range attempts {
		var img container.Image
		if img, failed = r.pull(ctx, named, credentials, opts.Progress); failed == nil {
			return img, nil
		}
		if !refused(failed) {
			break
		}
	}
	return container.Image{}, &ImageError{Ref: ref, Reason: "ErrImagePull", Err: failed}
}

// refused reports whether other credentials might help.
func refused(err error) bool {
	return errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err) ||
		strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "403") ||
		errdefs.IsNotFound(err) // registries hide what a caller may not see
}

// pull fetches with one set of credentials.
func (r *Runtime) pull(ctx context.Context, named reference.Named, credentials container.Credentials, report func(container.Progress)) (container.Image, error) {
	ctx, done, err := r.withLease(ctx)
	if err != nil {
		return container.Image{}, err
	}
	defer done()
	resolver := r.resolver(credentials)
	name, target, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return container.Image{}, fmt.Errorf("resolve: %w", err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return container.Image{}, fmt.Errorf("reach registry: %w", err)
	}
	source, err := docker.AppendDistributionSourceLabel(r.content, named.String())
	if err != nil {
		return container.Image{}, err
	}
	meter := newMeter(r)
	stop := meter.start(ctx, report)
	defer stop()
	// Two pulls of one layer at the same time would wait for each other by name of the
	// ingest; containerd handles that.
	if err := r.unpackTree(ctx, target, meter.handler(r.linkHandler(named, remotes.FetchHandler(r.content, fetcher))), source); err != nil {
		return container.Image{}, err
	}
	// One record by name, one by digest, so that both find it and a moved tag does not take
	// the other away.
	for _, record := range []string{named.String(), named.Name() + "@" + target.Digest.String()} {
		// Labels of a record that is there stay: an update of the target alone.
		if err := r.putTarget(ctx, record, target); err != nil {
			return container.Image{}, err
		}
	}
	info, err := r.inspect(ctx, target)
	if err != nil {
		return container.Image{}, err
	}
	return r.Image(ctx, info.id)
}

// putTarget points an image record at target and keeps its labels.
func (r *Runtime) putTarget(ctx context.Context, name string, target ocispec.Descriptor) error {
	_, err := r.images.Update(ctx, images.Image{Name: name, Target: target}, "target")
	if errdefs.IsNotFound(err) {
		return r.putImage(ctx, images.Image{Name: name, Target: target, Labels: map[string]string{}})
	}
	if err != nil {
		return fmt.Errorf("save image %s: %w", name, err)
	}
	return nil
}

// resolver returns a client for registries with one set of credentials.
func (r *Runtime) resolver(credentials container.Credentials) remotes.Resolver {
	client := &http.Client{Transport: docker.DefaultHTTPTransport(nil)}
	authorizer := docker.NewDockerAuthorizer(
		docker.WithAuthClient(client),
		docker.WithAuthCreds(func(string) (string, string, error) {
			if credentials.Token != "" {
				return "", credentials.Token, nil // an identity token, traded for an access token
			}
			return credentials.Username, credentials.Password, nil
		}),
	)
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: r.withOwnRegistry(docker.ConfigureDefaultRegistries(
			docker.WithClient(client),
			docker.WithAuthorizer(authorizer),
			docker.WithPlainHTTP(r.plainHTTP),
		)),
	})
}

// plainHTTP reports whether a registry is spoken to without TLS: those on this machine,
// and those the options name.
func (r *Runtime) plainHTTP(host string) (bool, error) {
	name := host
	if only, _, err := net.SplitHostPort(host); err == nil {
		name = only
	}
	address := net.ParseIP(strings.Trim(name, "[]"))
	if name == "localhost" || (address != nil && address.IsLoopback()) {
		return true, nil
	}
	return r.opts.PlainHTTP != nil && r.opts.PlainHTTP(host), nil
}

// meter counts what a pull has fetched.
type meter struct {
	r *Runtime

	mu    sync.Mutex // guards the fields below
	known map[string]ocispec.Descriptor
	ended map[string]bool
}

func newMeter(r *Runtime) *meter {
	return &meter{r: r, known: map[string]ocispec.Descriptor{}, ended: map[string]bool{}}
}

// handler counts the blobs that next fetches.
func (m *meter) handler(next images.HandlerFunc) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		key := desc.Digest.String()
		m.mu.Lock()
		m.known[key] = desc
		m.mu.Unlock()
		children, err := next(ctx, desc)
		if err == nil {
			m.mu.Lock()
			m.ended[key] = true
			m.mu.Unlock()
		}
		return children, err
	}
}

// start reports until the returned function is called, which reports once more.
func (m *meter) start(ctx context.Context, report func(container.Progress)) (stop func()) {
	if report == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(progressStep)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				report(m.progress(ctx))
			}
		}
	})
	return func() {
		final := m.progress(ctx)
		cancel()
		running.Wait()
		report(final)
	}
}

// progress adds up what is done and what is under way.
func (m *meter) progress(ctx context.Context) container.Progress {
	partial := map[string]int64{}
	if statuses, err := m.r.content.ListStatuses(ctx); err == nil {
		for _, status := range statuses {
			partial[status.Expected.String()] += status.Offset
			for _, kind := range []string{"layer-", "config-", "manifest-", "index-"} {
				if rest, ok := strings.CutPrefix(status.Ref, kind); ok {
					partial[rest] = status.Offset
				}
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum container.Progress
	for key, desc := range m.known {
		sum.Layers++
		sum.TotalBytes += desc.Size
		if m.ended[key] {
			sum.LayersDone++
			sum.DoneBytes += desc.Size
		} else {
			sum.DoneBytes += min(partial[key], desc.Size)
		}
	}
	return sum
}
