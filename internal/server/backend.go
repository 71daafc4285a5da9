package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/gobuild"
	"gantry.dev/gantry/internal/programs"
)

// Backend is what the command line does to this machine.
func Backend() cli.Backend {
	return cli.Backend{
		Versions: versions,
		Up: func(ctx context.Context, run cli.UpRequest) error {
			return Up(ctx, UpOptions{
				Config: run.Config, Identity: run.Identity, Version: run.Version,
				Steps: run.Steps, Logger: run.Logger, Ready: run.Ready, Join: run.Join, Change: run.Change, Trial: run.Trial,
			})
		},
		Down:   func(ctx context.Context, run cli.DownRequest) error { return Down(ctx, run.Config, run.Steps) },
		Doctor: examine, ProbeImage: probeImage,
		Images:  &cli.Images{Load: loadImages, List: listImages, Remove: removeImage, Build: buildImage},
		Backups: &cli.Backups{Restore: restore, Verify: verifyBackup},
		Registry: &cli.Registry{
			PushFile: pushFile, PushLocal: pushLocal, List: listRegistry, Remove: removeFromRegistry, Prune: pruneRegistry,
		},
	}
}

func versions() []cli.Version {
	var out []cli.Version
	for _, v := range programs.Versions() {
		if v.Name == "go" {
			continue // the command line says it of this program
		}
		out = append(out, cli.Version{Name: v.Name, Version: v.Version})
	}
	return out
}

// commands writes commands as a person types them.
func commands(all [][]string) string {
	lines := make([]string, 0, len(all))
	for _, words := range all {
		lines = append(lines, strings.Join(words, " "))
	}
	return strings.Join(lines, "; ")
}

func loadImages(ctx context.Context, c config.Config, archive io.Reader) ([]string, error) {
	images, err := newImageClient(nodeSocket(c)).Load(ctx, archive)
	var names []string
	for _, image := range images {
		names = append(names, image.Names...)
	}
	return names, err
}

func listImages(ctx context.Context, c config.Config) ([]cli.Image, error) {
	images, err := newImageClient(nodeSocket(c)).List(ctx)
	var out []cli.Image
	for _, image := range images {
		for _, name := range namesOf(image) {
			out = append(out, cli.Image{Name: name, Digest: image.ID, SizeBytes: image.SizeBytes})
		}
	}
	slices.SortFunc(out, func(a, b cli.Image) int { return strings.Compare(a.Name, b.Name) })
	return out, err
}

func namesOf(image container.Image) []string {
	if len(image.Names) > 0 {
		return image.Names
	}
	if len(image.Digests) > 0 {
		return image.Digests
	}
	return []string{image.ID}
}

func removeImage(ctx context.Context, c config.Config, name string) error {
	return newImageClient(nodeSocket(c)).Remove(ctx, name)
}

func buildImage(ctx context.Context, run cli.BuildRequest) error {
	_, err := gobuild.Build(ctx, gobuild.Options{Dir: run.Path, Name: run.Name, Progress: run.Progress}, run.Out)
	return err
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

func trimLine(text []byte) string { return string(bytes.TrimSpace(text)) }
