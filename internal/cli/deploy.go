package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/build/language"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/source"
)

// previewTTL is how long a preview lives unless another time is said.
const previewTTL = 7 * 24 * time.Hour

// deployFlags are those of deploy and plan.
type deployFlags struct {
	appFlags
	stage, preview, ttl, message string
	registry                     string
	takeOver, remote             bool
}

const deployLong = `Deploy this folder, or PATH, an IMAGE, or a Compose file.

Nothing but the source is needed where the folder tells what it is: Dockerfile, Procfile, go.mod, package.json, requirements.txt,
pyproject.toml or index.html, first match. A gantry.yaml says more; "gantry init" writes one.

Exit codes: 0 done, 2 wrong use or file, 3 the build failed, 4 a check or the release command failed, 5 unhealthy (the old release
serves), 6 the canary was aborted, 7 still on its way at the time-out, 8 unreachable or denied, 9 superseded by a later deploy.`

func (a *app) deployCommand() *cobra.Command {
	f := &deployFlags{}
	cmd := f.registerWait(&cobra.Command{
		Use: "deploy [PATH|IMAGE|compose.yaml]", Short: "Deploy this folder, an image or a Compose file", Long: deployLong, Args: atMostOne("PATH, IMAGE or Compose file"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.deploy(cmd, f, first(args)) },
	})
	f.registerSource(cmd)
	cmd.Flags().BoolVar(&f.takeOver, "take-over", false, "deploy over an application that came from elsewhere")
	cmd.Flags().StringVar(&f.registry, "registry", "", "build here and push to this registry, as REGISTRY/APP, instead of the cluster's own")
	cmd.Flags().BoolVar(&f.remote, "remote", false, "build on the server, even what this machine could compile")
	return cmd
}

func (f *deployFlags) registerSource(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.stage, "stage", "", "deploy this stage of gantry.yaml, as APP-STAGE")
	cmd.Flags().StringVar(&f.preview, "preview", "", "deploy a copy with addons and an address of its own, as APP-NAME")
	cmd.Flags().StringVar(&f.ttl, "ttl", "7d", "how long a preview lives after its last deploy")
	cmd.Flags().StringVarP(&f.message, "message", "m", "", "why, as \"gantry release ls\" shows it")
}

func (a *app) deploy(cmd *cobra.Command, f *deployFlags, what string) error {
	t, _, err := a.connect(cmd, &f.appFlags)
	if err != nil {
		return err
	}
	requests, err := a.requests(cmd.Context(), t, f, what)
	if err != nil {
		return err
	}
	for _, request := range requests {
		if err := a.deployOne(cmd.Context(), t, f, request); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) deployOne(ctx context.Context, t *appTarget, f *deployFlags, request deploy.Request) error {
	a.announce(t, request.App)
	sink, end := a.show(f.quiet)
	engine, err := deploy.New(deploy.Options{Cluster: t.cluster, Sink: sink})
	if err != nil {
		end()
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	result, err := engine.Deploy(ctx, request)
	end()
	if errors.Is(err, context.Canceled) {
		err = detached(result)
	}
	if result.Release > 0 && f.stage == "" && f.preview == "" {
		folder := t.folder
		if request.Tree != nil {
			folder = request.Tree.Folder
		}
		a.remember(folder, place{Context: t.context, Project: request.Project, App: request.App})
	}
	if finished := a.finish(result, err); finished != nil {
		return finished
	}
	a.hintUnrouted(ctx, t, result)
	return nil
}

// detached says how to rejoin or abort what goes on after Ctrl-C.
func detached(result deploy.Result) error {
	if result.Release == 0 && result.Phase == "" && result.Image == "" {
		return withCode(exitOther, errors.New("interrupted: nothing was deployed"))
	}
	version := "the newest release"
	show := "gantry release show -a " + result.App + " --follow"
	if result.Release > 0 {
		version = fmt.Sprintf("v%d", result.Release)
		show = fmt.Sprintf("gantry release show %s -a %s --follow", version, result.App)
	}
	return withCode(exitTimeout, fmt.Errorf("detached: %s of %s goes on without you\n→ watch it again: %s\n→ give it up: gantry abort -a %s", version, result.App, show, result.App))
}

// requests reads what is to be deployed. A Compose file may be several applications.
func (a *app) requests(ctx context.Context, t *appTarget, f *deployFlags, what string) ([]deploy.Request, error) {
	if f.stage != "" && f.preview != "" {
		return nil, usage("a deploy is a stage or a preview, not both")
	}
	info, err := os.Stat(cmp.Or(what, "."))
	switch {
	case err == nil && info.IsDir():
		request, err := a.folderRequest(ctx, t, f, cmp.Or(what, "."), "")
		return []deploy.Request{request}, err
	case err == nil && filepath.Base(what) == appfile.FileName:
		request, err := a.folderRequest(ctx, t, f, filepath.Dir(what), "")
		return []deploy.Request{request}, err
	case err == nil:
		return a.composeRequests(ctx, t, f, what)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, usage("look at %s: %w", what, err)
	case strings.HasSuffix(what, ".yaml"), strings.HasSuffix(what, ".yml"), strings.HasPrefix(what, "."), strings.HasPrefix(what, "/"):
		return nil, usage("there is no %s", what)
	case appfile.CheckImage(what) != nil || !strings.ContainsAny(what, ":/@"):
		return nil, usage("%q is neither a folder or file here, nor an image with a tag such as %s:latest", what, cmp.Or(appfile.AppName(what), "shop"))
	}
	request, err := a.folderRequest(ctx, t, f, ".", what)
	return []deploy.Request{request}, err
}

// folderRequest deploys a folder; with an image, that runs in the place of what the folder's file says.
func (a *app) folderRequest(ctx context.Context, t *appTarget, f *deployFlags, folder, image string) (deploy.Request, error) {
	absolute, err := filepath.Abs(folder)
	if err != nil {
		return deploy.Request{}, usage("find %s: %w", folder, err)
	}
	file, err := appfile.Load(folder, f.stage)
	known := err == nil
	if errors.Is(err, fs.ErrNotExist) && f.stage == "" {
		file, err = &appfile.File{}, nil
	}
	if err != nil {
		return deploy.Request{}, usage("%w", err)
	}
	request := deploy.Request{Spec: file.Spec, Local: !f.remote}
	name := cmp.Or(f.app, file.Name, appfile.AppName(filepath.Base(absolute)))
	if image != "" {
		request.Spec.Image, request.Spec.Build = image, nil
		if !known {
			name = cmp.Or(f.app, appfile.AppName(repositoryName(image)))
		}
	}
	src := &v1alpha1.Source{Stage: f.stage, Lines: file.Lines, Origin: a.originOf(absolute)}
	if known {
		src.File = appfile.FileName
	} else if image != "" {
		src.Origin, _, _ = strings.Cut(image, "@")
		src.Origin = strings.TrimSuffix(src.Origin, ":"+tagOf(src.Origin))
	}
	request.Spec.Source = src
	switch build := request.Spec.Build; {
	case request.Spec.Image != "":
	case build != nil && build.Git != nil:
		src.Origin = deploy.GitOrigin(build)
	default:
		if err := a.readSource(ctx, &request, absolute, f.quiet); err != nil {
			return request, err
		}
	}
	return a.complete(ctx, t, f, request, name)
}

// readSource looks at the source that is built.
func (a *app) readSource(ctx context.Context, request *deploy.Request, folder string, quiet bool) error {
	tree, err := source.Scan(ctx, source.Options{Folder: folder, Host: hostname()})
	if err != nil {
		return usage("%w", err)
	}
	inside, dockerfile := ".", ""
	if b := request.Spec.Build; b != nil {
		inside, dockerfile = cmp.Or(b.Path, "."), b.Dockerfile
	}
	part, err := fs.Sub(tree.FS(), inside)
	if err != nil {
		return usage("build.path: %w", err)
	}
	if _, err := fs.Stat(part, "."); err != nil {
		return usage("there is no folder %s to build; build.path names it", inside)
	}
	found, err := language.Detect(part, language.Options{Dockerfile: dockerfile})
	if err != nil {
		return usage("%s: %w", cmp.Or(strings.TrimPrefix(inside, "."), "this folder"), err)
	}
	if !quiet && !a.json {
		for _, note := range tree.Notes {
			a.warn("%s", note)
		}
		_, _ = fmt.Fprintf(a.env.Stderr, "- %s\n", found.Why)
	}
	request.Tree, request.Kind = tree, found.Kind
	if found.Main != "." {
		request.Main = found.Main
	}
	deploy.AddProcesses(&request.Spec, found.Processes)
	request.Spec.Source.Origin, request.Spec.Source.Commit = tree.Origin, tree.Commit
	return nil
}

func (a *app) composeRequests(ctx context.Context, t *appTarget, f *deployFlags, path string) ([]deploy.Request, error) {
	if f.stage != "" {
		return nil, usage("a Compose file has no stages; \"gantry init\" writes a gantry.yaml, which may")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("read %s: %w", path, err)
	}
	folder, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, usage("find %s: %w", path, err)
	}
	imported, err := appfile.ImportCompose(appfile.ComposeOptions{
		File: path, Text: text, Folder: os.DirFS(folder), Name: cmp.Or(f.app, filepath.Base(folder)), Env: environment(a.env.Environ),
	})
	if err != nil {
		return nil, usage("%w", err)
	}
	if !f.quiet && !a.json {
		for _, note := range imported.Notes {
			a.warn("%s", note)
		}
	}
	if f.app != "" && len(imported.Apps) > 1 {
		return nil, usage("%s is %d applications, so -a %s names none of them", path, len(imported.Apps), f.app)
	}
	var out []deploy.Request
	for _, one := range imported.Apps {
		request := deploy.Request{Spec: one.Spec, Local: !f.remote}
		request.Spec.Source = &v1alpha1.Source{File: filepath.Base(path), Lines: one.Lines, Origin: a.originOf(folder)}
		if request.Spec.Image == "" {
			if err := a.readSource(ctx, &request, folder, f.quiet); err != nil {
				return nil, err
			}
		}
		if request, err = a.complete(ctx, t, f, request, cmp.Or(f.app, one.Name)); err != nil {
			return nil, err
		}
		out = append(out, request)
	}
	return out, nil
}

// complete adds what all kinds of deploys have.
func (a *app) complete(ctx context.Context, t *appTarget, f *deployFlags, request deploy.Request, name string) (deploy.Request, error) {
	base := name
	if suffix := cmp.Or(f.stage, f.preview); suffix != "" {
		name += "-" + suffix
	}
	if checked := appfile.AppName(name); checked != name {
		return request, usage("%q cannot be the name of an application: lower-case letters, digits and dashes, at most %d; %q could", name, appfile.MaxAppName, checked)
	}
	request.Project, request.App = t.key.Namespace, name
	request.TakeOver, request.NoWait, request.Timeout, request.Registry = f.takeOver, f.noWait, f.timeout, f.registry
	request.Spec.Source.Reason = cmp.Or(f.message, "deploy")
	request.Spec.Source.By = cmp.Or(a.getenv("USER"), a.getenv("LOGNAME"), "unknown") + "@" + hostname()
	if f.preview != "" {
		ttl, err := appfile.ParseDuration(cmp.Or(f.ttl, previewTTL.String()))
		if err != nil || ttl <= 0 {
			return request, usage("--ttl %q is not a duration such as 7d", f.ttl)
		}
		expires := time.Now().Add(ttl)
		request.Expires = &expires
		request.Spec.Domains = nil
		if err := addonsOf(ctx, t, &request.Spec, base); err != nil {
			return request, err
		}
	}
	return request, nil
}

// addonsOf gives a preview addons like those that "addon add" gave the application, each of its own. Those of the file it has
// anyway; volumes and data are never shared.
func addonsOf(ctx context.Context, t *appTarget, spec *v1alpha1.AppSpec, base string) error {
	one, err := t.cluster.App(ctx, types.NamespacedName{Namespace: t.key.Namespace, Name: base})
	if deploy.IsNoApp(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for name, addon := range one.Spec.Addons {
		if _, named := spec.Addons[name]; named || !addon.Added {
			continue
		}
		if spec.Addons == nil {
			spec.Addons = map[string]v1alpha1.Addon{}
		}
		addon.Backup = "" // what ends by itself needs none
		spec.Addons[name] = addon
	}
	return nil
}

// originOf is where a folder comes from, without looking at its files.
func (a *app) originOf(folder string) string { return source.Origin(folder, hostname()) }

// repositoryName is the last part of an image's name: shop of ghcr.io/acme/shop:1.4.
func repositoryName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	image = strings.TrimSuffix(image, ":"+tagOf(image))
	return image[strings.LastIndex(image, "/")+1:]
}

func tagOf(image string) string {
	last := image[strings.LastIndex(image, "/")+1:]
	_, tag, _ := strings.Cut(last, ":")
	return tag
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

func environment(environ []string) map[string]string {
	out := map[string]string{}
	for _, entry := range environ {
		if key, value, found := strings.Cut(entry, "="); found {
			out[key] = value
		}
	}
	return out
}

// initCommand writes a gantry.yaml with what was found and comments.
func (a *app) initCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "init [PATH]", Short: "Write a gantry.yaml for this folder, with comments", GroupID: groupApplication, Args: atMostOne("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, err := filepath.Abs(cmp.Or(first(args), "."))
			if err != nil {
				return usage("find the folder: %w", err)
			}
			tree, err := source.Scan(cmd.Context(), source.Options{Folder: folder, MaxBytes: 1 << 50})
			if err != nil {
				return usage("%w", err)
			}
			found, err := language.Detect(tree.FS(), language.Options{})
			if mains, several := errors.AsType[*language.MainsError](err); several {
				found = language.Plan{Kind: language.Go, Main: mains.Mains[0]}
				a.warn("there are %d programs: %s; the file names the first", len(mains.Mains), strings.Join(mains.Mains, ", "))
			} else if err != nil && !errors.Is(err, language.ErrNothing) {
				a.warn("%v", err)
			}
			target := filepath.Join(folder, appfile.FileName)
			file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return usage("%s is there already", target)
			}
			if err != nil {
				return usage("write %s: %w", target, err)
			}
			_, err = file.Write(appfile.Template(cmp.Or(name, appfile.AppName(filepath.Base(folder))), found))
			if err = errors.Join(err, file.Close()); err != nil {
				return fmt.Errorf("write %s: %w", target, err)
			}
			return a.printf("%s\n", target)
		},
	}
	cmd.Flags().StringVarP(&name, "app", "a", "", "the application's name (default: the folder's)")
	return cmd
}

// sortedKeys are the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
