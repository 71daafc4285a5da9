package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Work on the images of the registry and of this node", GroupID: groupCluster,
		Args: unknownCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.imageLoadCommand(), a.imageListCommand(), a.imageRemoveCommand(), a.imageBuildCommand())
	if a.backend.Registry != nil {
		cmd.AddCommand(a.imagePushCommand(), a.imagePruneCommand())
	}
	return cmd
}

func (a *app) imageLoadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load FILE", Short: "Import a docker or OCI archive; - reads standard input", Args: exactArgs("the archive's FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			archive := a.env.Stdin
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return usage("open the archive: %w", err)
				}
				defer func() { _ = file.Close() }()
				archive = file
			}
			names, err := a.backend.Images.Load(cmd.Context(), c, archive)
			if err != nil {
				return err
			}
			return a.printNames(names)
		},
	}
}

func (a *app) printNames(names []string) error {
	if a.json {
		return a.printJSON(names)
	}
	for _, name := range names {
		if err := a.printf("%s\n", name); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the images of the registry and of this node", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			images, err := a.backend.Images.List(cmd.Context(), c)
			if err != nil {
				return err
			}
			for i := range images {
				images[i].Where = "node"
			}
			images = append(a.registryImages(cmd), images...)
			if a.json {
				if images == nil {
					images = []Image{}
				}
				return a.printJSON(images)
			}
			rows := [][]string{{"NAME", "DIGEST", "SIZE", "WHERE"}}
			for _, image := range images {
				digest := strings.TrimPrefix(image.Digest, "sha256:")
				rows = append(rows, []string{image.Name, digest[:min(12, len(digest))], size(image.SizeBytes), image.Where})
			}
			return a.printTable(rows)
		},
	}
}

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove an image from this node, or from the registry", Args: exactArgs("the image's NAME"),
		Long: "Remove an image from this node. A NAME that begins with registry.gantry.internal/ is removed from the registry: a tag alone,\n" +
			"or with @sha256:... the image and all its tags.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			if a.backend.Registry != nil && strings.HasPrefix(args[0], registryHost+"/") {
				return a.removeFromRegistry(cmd, args[0])
			}
			return a.backend.Images.Remove(cmd.Context(), c, args[0])
		},
	}
}

func (a *app) imageBuildCommand() *cobra.Command {
	var name, output string
	cmd := &cobra.Command{
		Use: "build PATH", Short: "Make an image of a Go main package and load it into this node", Args: exactArgs("the package's PATH"),
		Long: "Compile the Go main package in the folder PATH as a static program and pack it into an image.\n" +
			"No container engine is needed, only the go command.",
	}
	cmd.Flags().StringVarP(&name, "tag", "t", "", "name of the image (default: the folder's name, tag latest)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the archive to this file and load nothing; - is standard output")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		folder, err := filepath.Abs(args[0])
		if err != nil {
			return usage("find %s: %w", args[0], err)
		}
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			return usage("%s is not a folder; give the folder of a Go main package", args[0])
		}
		if name == "" {
			name = strings.ToLower(filepath.Base(folder)) + ":latest"
		}
		run := BuildRequest{Path: folder, Name: name, Progress: a.env.Stderr}
		if output != "" {
			return a.buildToFile(cmd, run, output)
		}
		return a.buildAndLoad(cmd, run)
	}
	return cmd
}

func (a *app) buildToFile(cmd *cobra.Command, run BuildRequest, output string) error {
	if output == "-" {
		run.Out = a.env.Stdout
		return withCode(exitBuild, a.backend.Images.Build(cmd.Context(), run))
	}
	temp, err := os.CreateTemp(filepath.Dir(output), "."+filepath.Base(output)+".*")
	if err != nil {
		return usage("write %s: %w", output, err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // nothing is there after the rename
	run.Out = temp
	if err := a.backend.Images.Build(cmd.Context(), run); err != nil {
		_ = temp.Close()
		return withCode(exitBuild, err)
	}
	if err := temp.Close(); err != nil {
		return fmt.Errorf("write %s: %w", output, err)
	}
	if err := os.Rename(temp.Name(), output); err != nil {
		return fmt.Errorf("write %s: %w", output, err)
	}
	return nil
}

// buildAndLoad pipes the archive into the node as it is made.
func (a *app) buildAndLoad(cmd *cobra.Command, run BuildRequest) error {
	c, err := a.load(cmd, true)
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	run.Out = writer
	built := make(chan error, 1)
	go func() {
		err := a.backend.Images.Build(cmd.Context(), run)
		_ = writer.CloseWithError(err)
		built <- err
	}()
	names, err := a.backend.Images.Load(cmd.Context(), c, reader)
	_ = reader.CloseWithError(io.ErrClosedPipe) // ends a build that still writes
	if buildErr := <-built; buildErr != nil && err != nil {
		return withCode(exitBuild, buildErr)
	}
	if err != nil {
		return err
	}
	return a.printNames(names)
}
