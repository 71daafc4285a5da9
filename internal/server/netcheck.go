package server

import (
	"context"
	"fmt"
	"os"

	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/container/gobuild"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/programs"
)

// probeImage packs the embedded probe into an image and pushes it into the project, where every node can pull it. It goes with
// the project.
func probeImage(ctx context.Context, cluster *rest.Config, project string) (string, error) {
	dir, err := os.MkdirTemp("", "gantry-probe-")
	if err != nil {
		return "", fmt.Errorf("unpacking the probe: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	set, err := programs.Open(dir)
	if err != nil {
		return "", err
	}
	path, err := set.Path(programs.Probe)
	if err != nil {
		return "", err
	}
	if err := set.Unpack(programs.Probe); err != nil {
		return "", err
	}
	image, err := gobuild.Image(gobuild.Options{}, programs.Probe, path)
	if err != nil {
		return "", fmt.Errorf("packing the probe: %w", err)
	}
	ref, err := images.ParseReference(project + "/probe:check")
	if err != nil {
		return "", err
	}
	client, err := registryClient(cluster)
	if err != nil {
		return "", err
	}
	d, err := client.PushImage(ctx, ref.Repository, ref.Tag, image, nil)
	if err != nil {
		return "", fmt.Errorf("pushing %s: %w", ref, err)
	}
	return pushed(ref, d).Reference, nil
}
