package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/container/gobuild"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/remote"
)

func (a *app) platformCommand() *cobra.Command {
	cmd := parent("platform", "Run applications on somebody else's Kubernetes",
		a.platformInstallCommand(), a.platformUninstallCommand(), a.platformImageCommand(), a.platformRunCommand())
	cmd.GroupID = groupCluster
	return cmd
}

const platformInstallLong = `Install the platform on a Kubernetes cluster that is not Gantry's, or bring it up to this version: the kinds of gantry.dev, the
roles, and the controllers as a Deployment in the namespace gantry-system. The cluster is that of --kubeconfig (and --context), or
one of "gantry context ls".

The controllers' image holds this program. "gantry platform image" makes it; push it to a registry that the cluster's nodes reach, or
load it into them, and name it with --image. Without --image an installation keeps the one it has.

Exit codes: 0 done, 2 wrong use or a cluster that will not do, 5 the controllers do not come up, 8 unreachable or denied.`

func (a *app) platformInstallCommand() *cobra.Command {
	var opts remote.InstallOptions
	var context, output string
	var dryRun bool
	cmd := &cobra.Command{Use: "install", Short: "Install or upgrade the platform on a cluster", Long: platformInstallLong, Args: exactArgs()}
	flags := cmd.Flags()
	flags.StringVar(&context, "context", "", "a context of --kubeconfig, or one of \"gantry context ls\"")
	flags.StringVar(&opts.Image, "image", "", "the image of the controllers")
	flags.StringVar(&opts.PullSecret, "pull-secret", "", "a Secret in gantry-system with the registry's credentials")
	flags.Int32Var(&opts.Replicas, "replicas", 1, "how many copies of the controllers run; one of them works")
	flags.StringVar(&opts.Domain, "domain", "", "a domain whose every name leads to the cluster: applications are served at NAME.DOMAIN")
	flags.StringVar(&opts.PublicAddress, "public-address", "", "by which the world reaches the cluster's way in")
	flags.StringVar(&opts.IngressClass, "ingress-class", "", "the class of applications' Ingresses (default: the cluster's default, or its only one)")
	flags.StringVar(&opts.ClusterIssuer, "cluster-issuer", "", "a ClusterIssuer of cert-manager that makes certificates for applications' Ingresses")
	flags.BoolVar(&opts.NoWait, "no-wait", false, "do not wait for the controllers")
	flags.DurationVar(&opts.Timeout, "timeout", 3*time.Minute, "how long to wait")
	flags.BoolVar(&dryRun, "dry-run", false, "print what would be installed, and ask no cluster")
	flags.StringVarP(&output, "output", "o", "yaml", "how --dry-run prints: yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts.Version = a.env.Version
		if output != "yaml" || cmd.Flags().Changed("output") && !dryRun {
			return usage("-o takes yaml, with --dry-run")
		}
		if dryRun {
			return a.platformManifests(opts)
		}
		config, err := a.clusterOf(cmd, &appTarget{context: context})
		if err != nil {
			return err
		}
		opts.Step = func(message string) { _, _ = fmt.Fprintf(a.env.Stderr, "- %s\n", message) }
		if err := remote.Install(cmd.Context(), config, opts); err != nil {
			return platformError("install the platform", err)
		}
		return a.printf("the platform is installed; deploy to it: gantry deploy%s\n", deployHint(cmd, context))
	}
	return cmd
}

// deployHint is what leads deploy to the cluster that a command went to.
func deployHint(cmd *cobra.Command, context string) string {
	hint := ""
	if file, err := cmd.Flags().GetString("kubeconfig"); err == nil && cmd.Flags().Changed("kubeconfig") {
		hint = " --kubeconfig " + file
	}
	if context != "" {
		hint += " --context " + context
	}
	return hint
}

func (a *app) platformManifests(opts remote.InstallOptions) error {
	objects, err := remote.Manifests(opts)
	if err != nil {
		return platformError("print the platform", err)
	}
	for _, object := range objects {
		text, err := yaml.Marshal(object.Object)
		if err != nil {
			return fmt.Errorf("encode the %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if err := a.printf("---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

// platformError gives an error its exit code, and says what to do.
func platformError(doing string, err error) error {
	const image = "make it: gantry platform image -o gantry.tar (or --push REGISTRY/gantry:TAG), and name it with --image"
	if errors.Is(err, remote.ErrNoImage) {
		return usage("%v that holds this program\n→ %s", err, image)
	}
	if version, ok := errors.AsType[*remote.VersionError](err); ok {
		return usage("%s", version.Error())
	}
	if denied, ok := errors.AsType[*remote.DeniedError](err); ok {
		return &deploy.Error{Code: deploy.CodeUnreachable, Reason: "Denied", Message: denied.Error(),
			Do: []string{"nothing was changed; try again as an administrator of the cluster, or let one apply: gantry platform install --dry-run -o yaml --image IMAGE"}}
	}
	if down, ok := errors.AsType[*remote.NotReadyError](err); ok {
		return &deploy.Error{Code: deploy.CodeUnhealthy, Reason: "NotReady", Message: down.Error(),
			Do: []string{"the image is " + down.Image + "; the nodes have to find it: push it to a registry that they reach, or load it into them", image}}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return withCode(exitTimeout, fmt.Errorf("%s: the time is up: %w", doing, err))
	}
	return deploy.Reached(doing, err)
}

const platformUninstallLong = `Take the platform away. Applications go on running as they are, with nobody who deploys, scales or mends them; "gantry eject" gives
their YAML. With --apps they are removed, too, and with --data their volumes and secrets.`

func (a *app) platformUninstallCommand() *cobra.Command {
	var opts remote.UninstallOptions
	var context string
	cmd := &cobra.Command{Use: "uninstall", Short: "Take the platform away from a cluster", Long: platformUninstallLong, Args: exactArgs()}
	cmd.Flags().StringVar(&context, "context", "", "a context of --kubeconfig, or one of \"gantry context ls\"")
	cmd.Flags().BoolVar(&opts.Apps, "apps", false, "remove all applications, and the kinds of gantry.dev")
	cmd.Flags().BoolVar(&opts.Data, "data", false, "with --apps: remove their volumes and secrets, too")
	cmd.Flags().DurationVar(&opts.Timeout, "timeout", 3*time.Minute, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if opts.Data && !opts.Apps {
			return usage("--data goes with --apps: volumes are not taken from applications that run")
		}
		config, err := a.clusterOf(cmd, &appTarget{context: context})
		if err != nil {
			return err
		}
		question := "Take the platform away from " + config.Host
		switch {
		case opts.Data:
			question += ", with all applications and their data"
		case opts.Apps:
			question += ", with all applications; their volumes and secrets stay"
		}
		if err := a.confirm(question); err != nil {
			return err
		}
		opts.Step = func(message string) { _, _ = fmt.Fprintf(a.env.Stderr, "- %s\n", message) }
		if err := remote.Uninstall(cmd.Context(), config, opts); err != nil {
			return platformError("take the platform away", err)
		}
		return a.printf("the platform is gone from %s\n", config.Host)
	}
	return cmd
}

func (a *app) platformImageCommand() *cobra.Command {
	var name, output, push, program string
	cmd := &cobra.Command{
		Use: "image", Short: "Make the image of the platform's controllers, of this program", Args: exactArgs(),
		Long: "Pack this program into an image: as an archive that docker load, ctr images import or kind load image-archive take (-o FILE),\n" +
			"or pushed to a registry with docker's credentials (--push REF).",
	}
	cmd.Flags().StringVarP(&name, "tag", "t", "", "name of the image in the archive (default: gantry and the version)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the archive to this file; - is standard output")
	cmd.Flags().StringVar(&push, "push", "", "push the image as this, such as ghcr.io/acme/gantry:1.0")
	cmd.Flags().StringVar(&program, "program", "", "pack this program for Linux instead of the one that runs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (output == "") == (push == "") {
			return usage("say where to: -o FILE, or --push REF")
		}
		if program == "" && runtime.GOOS != "linux" {
			return usage("this program is for %s, and clusters run Linux: name a program for it with --program", runtime.GOOS)
		}
		if program == "" {
			var err error
			if program, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
		}
		tag := cmp.Or(name, push, "gantry:"+imageTag(a.env.Version))
		pack := func(out io.Writer) error {
			_, err := gobuild.Pack(gobuild.Options{Name: tag}, "gantry", program, out)
			return err
		}
		if push != "" {
			return a.pushPlatform(cmd.Context(), push, pack)
		}
		if output == "-" {
			return withCode(exitBuild, pack(a.env.Stdout))
		}
		if err := writeWhole(output, pack); err != nil {
			return withCode(exitBuild, err)
		}
		return a.printf("%s\n", tag)
	}
	return cmd
}

// imageTag makes a version into a tag.
func imageTag(version string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r) {
			return r
		}
		return '-'
	}, version)
}

func (a *app) pushPlatform(ctx context.Context, ref string, pack func(io.Writer) error) error {
	folder, err := os.MkdirTemp("", "gantry-image-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	archive := filepath.Join(folder, "gantry.tar")
	if err := writeWhole(archive, pack); err != nil {
		return withCode(exitBuild, err)
	}
	pushed, err := deploy.PushOutside(ctx, ref, archive)
	if err != nil {
		return err
	}
	return a.printf("%s\n", pushed)
}

// writeWhole writes a file that is there when it is whole.
func writeWhole(path string, write func(io.Writer) error) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return usage("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // nothing is there after the rename
	err = write(temp)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// platformRunCommand is what the controllers' Deployment runs.
func (a *app) platformRunCommand() *cobra.Command {
	var identity, listen, context string
	cmd := &cobra.Command{Use: "run", Short: "Keep the applications of a cluster", Hidden: true, Args: exactArgs()}
	cmd.Flags().StringVar(&identity, "identity", "", "name of this copy (default: the machine's)")
	cmd.Flags().StringVar(&listen, "listen", fmt.Sprintf(":%d", remote.HealthPort), "where probes are answered; empty is nowhere")
	cmd.Flags().StringVar(&context, "context", "", "a context of --kubeconfig")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var config *rest.Config
		var err error
		if cmd.Flags().Changed("kubeconfig") {
			config, err = a.clusterOf(cmd, &appTarget{context: context})
		} else if config, err = rest.InClusterConfig(); err != nil {
			err = usage("this is no pod of a cluster (%w); name one with --kubeconfig", err)
		}
		if err != nil {
			return err
		}
		handler := slog.NewTextHandler(a.env.Stderr, nil)
		ctrllog.SetLogger(logr.FromSlogHandler(handler))
		klog.SetSlogLogger(slog.New(handler))
		platform, err := remote.New(remote.Options{Config: config, Identity: cmp.Or(identity, hostname()), Log: slog.New(handler)})
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return runPlatform(ctx, platform, listen)
	}
	return cmd
}

// runPlatform runs the controllers and answers probes beside them.
func runPlatform(ctx context.Context, platform *remote.Platform, listen string) error {
	if listen == "" {
		return platform.Run(ctx)
	}
	socket, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	server := &http.Server{Handler: platform.Handler(), ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(socket) }) // ends with Close
	err = platform.Run(ctx)
	closeErr := server.Close()
	serving.Wait()
	return errors.Join(err, closeErr)
}
