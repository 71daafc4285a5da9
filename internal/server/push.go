package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/images"
)

// pruneGrace is how young an image without a tag may be to survive a prune: longer than a push takes.
const pruneGrace = time.Hour

// pushTarget is where an image goes: as asked for, or under its own name in project default.
func pushTarget(target, own string) (images.Reference, error) {
	if target != "" {
		ref, err := images.ParseReference(target)
		if err == nil && ref.Digest != "" {
			err = fmt.Errorf("%q: an image gets its digest by itself; give PROJECT/APP[:TAG]", target)
		}
		if err == nil && ref.Tag == "" {
			ref.Tag = "latest"
		}
		return ref, err
	}
	if own == "" {
		return images.Reference{}, errors.New("the image has no name: give PROJECT/APP[:TAG]")
	}
	named, err := reference.ParseNormalizedNamed(own)
	if err != nil {
		return images.Reference{}, fmt.Errorf("the image is called %q: give PROJECT/APP[:TAG]", own)
	}
	tag := "latest"
	if tagged, ok := named.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	path := reference.Path(named)
	return images.ParseReference("default/" + path[strings.LastIndexByte(path, '/')+1:] + ":" + tag)
}

func pushed(ref images.Reference, d digest.Digest) cli.Pushed {
	return cli.Pushed{Name: images.Host + "/" + ref.String(), Reference: images.Host + "/" + ref.Repository.Name + "@" + d.String()}
}

// registryClient speaks to the registry of a kubeconfig's cluster.
func registryClient(cluster *rest.Config) (*images.Client, error) {
	client, err := rest.HTTPClientFor(cluster)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return images.NewClient(images.ClientOptions{URL: cluster.Host, HTTP: client})
}

func pushFile(ctx context.Context, run cli.PushRequest) (cli.Pushed, error) {
	client, err := registryClient(run.Cluster)
	if err != nil {
		return cli.Pushed{}, err
	}
	source, err := images.OpenSource(run.Source)
	if err != nil {
		return cli.Pushed{}, err
	}
	defer func() { _ = source.Close() }()
	ref, err := pushTarget(run.Target, source.Name)
	if err != nil {
		return cli.Pushed{}, err
	}
	progress := func(p images.Progress) {
		if run.Progress != nil {
			run.Progress(p.BytesDone, p.Bytes)
		}
	}
	var d digest.Digest
	if source.Index != nil {
		d, err = client.PushIndex(ctx, ref.Repository, ref.Tag, source.Index, progress)
	} else {
		d, err = client.PushImage(ctx, ref.Repository, ref.Tag, source.Image, progress)
	}
	if err != nil {
		return cli.Pushed{}, fmt.Errorf("pushing %s: %w", ref, err)
	}
	return pushed(ref, d), nil
}

func pushLocal(ctx context.Context, c config.Config, run cli.PushRequest) (cli.Pushed, error) {
	ref, err := pushTarget(run.Target, run.Source)
	if err != nil {
		return cli.Pushed{}, err
	}
	var out cli.Pushed
	query := url.Values{"image": {run.Source}, "to": {ref.String()}}
	err = newImageClient(nodeSocket(c)).ask(ctx, http.MethodPost, "/push?"+query.Encode(), nil, &out)
	return out, err
}

func pruneRegistry(ctx context.Context, c config.Config) (cli.Pruned, error) {
	var out cli.Pruned
	err := newImageClient(nodeSocket(c)).ask(ctx, http.MethodPost, "/prune", nil, &out)
	return out, err
}

// listRegistry lists a name for each tag, and images without a tag by their digest.
func listRegistry(ctx context.Context, cluster *rest.Config) ([]cli.Image, error) {
	client, err := registryClient(cluster)
	if err != nil {
		return nil, err
	}
	repos, err := client.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	var out []cli.Image
	for _, repo := range repos {
		entries, err := client.Images(ctx, repo)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			names := []string{"@" + entry.Digest.String()}
			if len(entry.Tags) > 0 {
				names = names[:0]
				for _, tag := range entry.Tags {
					names = append(names, ":"+tag)
				}
			}
			for _, name := range names {
				out = append(out, cli.Image{Name: images.Host + "/" + repo.Name + name, Digest: entry.Digest.String(), SizeBytes: entry.SizeBytes, Where: "registry"})
			}
		}
	}
	return out, nil
}

func removeFromRegistry(ctx context.Context, cluster *rest.Config, name string) error {
	ref, err := images.ParseReference(name)
	if err != nil {
		return err
	}
	if ref.Tag == "" && ref.Digest == "" {
		return fmt.Errorf("%s: give a tag or a digest, as \"gantry image ls\" shows them", name)
	}
	client, err := registryClient(cluster)
	if err != nil {
		return err
	}
	return client.Delete(ctx, ref)
}

// push takes an image of this node into the registry, by links.
func (s *imageServer) push(w http.ResponseWriter, r *http.Request) {
	out, err := s.pushImage(r.Context(), r.URL.Query().Get("image"), r.URL.Query().Get("to"))
	s.reply(w, out, err)
}

func (s *imageServer) pushImage(ctx context.Context, image, to string) (cli.Pushed, error) {
	store := s.cluster.images
	ref, err := images.ParseReference(to)
	if err != nil {
		return cli.Pushed{}, err
	}
	if exists, err := s.cluster.projectExists(ctx, ref.Repository.Project); err != nil || !exists {
		return cli.Pushed{}, errors.Join(err, fmt.Errorf("there is no project %q", ref.Repository.Project))
	}
	files, err := s.runtime.ImageFiles(ctx, image)
	if err != nil {
		return cli.Pushed{}, err
	}
	s.cluster.replica.Fresh(ctx, ref.Repository)
	var d digest.Digest
	for i, file := range files {
		if !isManifest(file) {
			if err := store.Adopt(ctx, ref.Repository, file.Descriptor.Digest, file.Path); err != nil {
				return cli.Pushed{}, err
			}
			continue
		}
		data, err := os.ReadFile(file.Path)
		if err != nil {
			return cli.Pushed{}, fmt.Errorf("reading manifest: %w", err)
		}
		tag := ""
		if i == len(files)-1 {
			tag = ref.Tag
		}
		m, err := store.PutManifest(ctx, ref.Repository, tag, file.Descriptor.Digest, file.Descriptor.MediaType, data)
		if err != nil {
			return cli.Pushed{}, err
		}
		d = m.Digest
	}
	if err := s.cluster.replica.Changed(ctx, ref.Repository); err != nil {
		return cli.Pushed{}, err
	}
	return pushed(ref, d), nil
}

func isManifest(file containerd.ImageFile) bool {
	kind := file.Descriptor.MediaType
	return strings.HasSuffix(kind, "+json") && (strings.Contains(kind, ".manifest.") || strings.Contains(kind, ".index."))
}

func (s *imageServer) prune(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.cluster.Controlled():
	default:
		s.reply(w, nil, errors.New("the cluster is starting; try again"))
		return
	}
	done, err := s.cluster.collector.Collect(r.Context(), pruneGrace)
	pruned := cli.Pruned{Manifests: done.Manifests, Blobs: done.Blobs, Uploads: done.Uploads, Bytes: done.Bytes}
	if err == nil && s.builds != nil {
		pruned.Cache, err = s.builds(r.Context())
	}
	s.reply(w, pruned, err)
}

func (s *imageServer) reply(w http.ResponseWriter, value any, err error) {
	switch {
	case errors.Is(err, containerd.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	default:
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(value); err != nil {
			s.logger.Debug("answering an image command", "error", err)
		}
	}
}
