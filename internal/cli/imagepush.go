package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/config"
)

// registryHost is what references to images of the cluster's registry begin with.
const registryHost = "registry.gantry.internal"

// Registry works on the cluster's image registry; all members are required.
type Registry struct {
	// PushFile pushes the image of a file or folder over the API; PushLocal one of this node's, without a copy.
	PushFile  func(ctx context.Context, run PushRequest) (Pushed, error)
	PushLocal func(ctx context.Context, c config.Config, run PushRequest) (Pushed, error)
	List      func(ctx context.Context, cluster *rest.Config) ([]Image, error)
	Remove    func(ctx context.Context, cluster *rest.Config, name string) error
	// Prune removes what nothing uses from the registry of the data dir's server.
	Prune func(ctx context.Context, c config.Config) (Pruned, error)
}

// PushRequest says what to push where.
type PushRequest struct {
	Cluster  *rest.Config // for files
	Source   string       // a path, or the name of an image on this node
	Target   string       // PROJECT/APP[:TAG]; "" is what the image is called, in project default
	Progress func(done, total int64)
}

// Pushed says where an image is now.
type Pushed struct {
	Name      string `json:"name"`      // by its tag
	Reference string `json:"reference"` // by its digest: what manifests should name
}

// Pruned counts what was removed.
type Pruned struct {
	Manifests int   `json:"manifests"`
	Blobs     int   `json:"blobs"`
	Uploads   int   `json:"uploads"`
	Bytes     int64 `json:"bytes"`
	Cache     int64 `json:"cache"` // bytes of the builds' cache
}

func (a *app) imagePushCommand() *cobra.Command {
	return &cobra.Command{
		Use: "push FILE|IMAGE [PROJECT/APP[:TAG]]", Short: "Push an image to the cluster's registry",
		Long: "Push an image to the cluster's registry: from a docker or OCI archive, from the folder of an OCI layout, or one of this node's\n" +
			"images by its name. Without PROJECT/APP it keeps its name, in project default.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage("push needs FILE or IMAGE, and may have PROJECT/APP[:TAG]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			run := PushRequest{Source: args[0], Progress: a.pushProgress()}
			if len(args) > 1 {
				run.Target = args[1]
			}
			pushed, err := a.push(cmd, run)
			if a.draws() && !a.json {
				_, _ = fmt.Fprint(a.env.Stderr, "\r\033[K")
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(pushed)
			}
			return a.printf("%s\n%s\n", pushed.Name, pushed.Reference)
		},
	}
}

func (a *app) push(cmd *cobra.Command, run PushRequest) (Pushed, error) {
	if _, err := os.Stat(run.Source); err != nil {
		if strings.HasPrefix(run.Source, "/") || strings.HasPrefix(run.Source, ".") || !errors.Is(err, os.ErrNotExist) {
			return Pushed{}, usage("open the image: %w", err)
		}
		c, err := a.load(cmd, true)
		if err != nil {
			return Pushed{}, err
		}
		return a.backend.Registry.PushLocal(cmd.Context(), c, run)
	}
	var err error
	if run.Cluster, err = a.clusterOf(cmd, &appTarget{}); err != nil {
		return Pushed{}, err
	}
	return a.backend.Registry.PushFile(cmd.Context(), run)
}

// pushProgress draws how far a push is, on a terminal.
func (a *app) pushProgress() func(done, total int64) {
	if !a.draws() || a.json {
		return nil
	}
	var last time.Time
	return func(done, total int64) {
		if time.Since(last) < 100*time.Millisecond && done < total {
			return
		}
		last = time.Now()
		_, _ = fmt.Fprintf(a.env.Stderr, "\r\033[Kpushing %s of %s", size(done), size(total))
	}
}

func (a *app) imagePruneCommand() *cobra.Command {
	return &cobra.Command{
		Use: "prune", Short: "Remove images from the registry that nothing uses, and the cache of builds", Args: exactArgs(),
		Long: "Remove from this server's registry what has no tag and what no pod, workload, build or one of the last ten releases uses.\n" +
			"What was pushed less than an hour ago stays. The cache of this server's builds goes, too: the next builds take longer.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			pruned, err := a.backend.Registry.Prune(cmd.Context(), c)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(pruned)
			}
			cache := ""
			if pruned.Cache > 0 {
				cache = "; and the cache of builds: " + size(pruned.Cache)
			}
			return a.printf("removed %d images, %d layers and %d uploads that were given up: %s%s\n", pruned.Manifests, pruned.Blobs, pruned.Uploads, size(pruned.Bytes), cache)
		},
	}
}

// registryImages lists the registry's images. Without a cluster to ask there are none; what went wrong is a warning, since
// the node's images are there to be seen.
func (a *app) registryImages(cmd *cobra.Command) []Image {
	if a.backend.Registry == nil {
		return nil
	}
	cluster, err := a.clusterOf(cmd, &appTarget{})
	if err == nil {
		var found []Image
		if found, err = a.backend.Registry.List(cmd.Context(), cluster); err == nil {
			return found
		}
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "gantry: the registry's images are not listed: %v\n", err)
	return nil
}

// removeFromRegistry removes an image there; the node may have it too.
func (a *app) removeFromRegistry(cmd *cobra.Command, name string) error {
	cluster, err := a.clusterOf(cmd, &appTarget{})
	if err != nil {
		return err
	}
	return a.backend.Registry.Remove(cmd.Context(), cluster, name)
}
