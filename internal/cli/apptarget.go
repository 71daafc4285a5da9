package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// defaultProject is where applications are of whoever names no project.
const defaultProject = "default"

// appFlags are the flags that commands on applications share.
type appFlags struct {
	app, project, context string
	timeout               time.Duration
	noWait, quiet         bool
}

// register adds the flags that say which application.
func (f *appFlags) register(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&f.app, "app", "a", "", "the application (default: this folder's)")
	cmd.Flags().StringVarP(&f.project, "project", "p", "", "the project, which is a namespace (default: this folder's, or \"default\")")
	cmd.Flags().StringVar(&f.context, "context", "", "the cluster, one of \"gantry context ls\" (default: this folder's, or the current one)")
	cmd.GroupID = groupApplication
	return cmd
}

// registerWait adds the flags of commands that may wait for a release.
func (f *appFlags) registerWait(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Minute, "how long to wait")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "do not wait for the release")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the result alone")
	return f.register(cmd)
}

// place is what a folder remembers of its last deploy.
type place struct {
	Context string `json:"context,omitempty"`
	Project string `json:"project,omitempty"`
	App     string `json:"app,omitempty"`
}

// appTarget is an application on a cluster.
type appTarget struct {
	cluster *deploy.Cluster
	key     types.NamespacedName
	context string // its name; empty is this machine's own cluster
	server  string // the address of a cluster that is reached through SSH, as it is there
	where   string // the machine that it is reached through; empty is directly
	folder  string
}

// target finds out which application is meant: -a, the argument, what the folder was deployed as, the folder's gantry.yaml.
func (a *app) target(cmd *cobra.Command, f *appFlags, argument string) (*appTarget, error) {
	t, known, err := a.connect(cmd, f)
	if err != nil {
		return nil, err
	}
	if f.app != "" && argument != "" && f.app != argument {
		return nil, usage("two applications are named: %s and -a %s", argument, f.app)
	}
	if t.key.Name = cmp.Or(f.app, argument, known.App); t.key.Name == "" {
		if file, err := appfile.Load(t.folder, ""); err == nil {
			t.key.Name = cmp.Or(file.Name, appfile.AppName(filepath.Base(t.folder)))
		}
	}
	if t.key.Name == "" {
		return nil, usage("which application? This folder was not deployed yet; say -a NAME, see \"gantry app ls\"")
	}
	return t, nil
}

// connect finds the cluster and the project.
func (a *app) connect(cmd *cobra.Command, f *appFlags) (*appTarget, place, error) {
	t, known, err := a.placeOf(cmd, f)
	if err != nil {
		return nil, place{}, err
	}
	config, err := a.clusterOf(cmd, t)
	if err != nil {
		return nil, place{}, err
	}
	t.cluster, err = deploy.Connect(config)
	return t, known, err
}

// placeOf finds context and project: those of flags, else what this folder remembers.
func (a *app) placeOf(cmd *cobra.Command, f *appFlags) (*appTarget, place, error) {
	folder, err := os.Getwd()
	if err != nil {
		return nil, place{}, fmt.Errorf("find this folder: %w", err)
	}
	known := a.places()[folder]
	if hereFlags(cmd) {
		known.Context = "" // it was said where
	}
	t := &appTarget{folder: folder, context: cmp.Or(f.context, known.Context)}
	t.key.Namespace = cmp.Or(f.project, known.Project, defaultProject)
	return t, known, nil
}

// configFolder is where this user's settings lie.
func (a *app) configFolder() string {
	if dir := a.getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "gantry")
	}
	return filepath.Join(a.getenv("HOME"), ".config", "gantry")
}

func (a *app) placesFile() string { return filepath.Join(a.configFolder(), "folders.json") }

// places is what folders remember. A file that cannot be read is none: it only saves typing.
func (a *app) places() map[string]place {
	out := map[string]place{}
	if text, err := os.ReadFile(a.placesFile()); err == nil {
		_ = json.Unmarshal(text, &out)
	}
	return out
}

// remember notes what a folder was deployed as.
func (a *app) remember(folder string, p place) {
	all := a.places()
	if all[folder] == p {
		return
	}
	all[folder] = p
	for other := range all {
		if _, err := os.Stat(other); errors.Is(err, fs.ErrNotExist) {
			delete(all, other)
		}
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		if err = os.MkdirAll(a.configFolder(), 0o700); err == nil {
			err = durable.WriteFile(a.placesFile(), append(text, '\n'), 0o600)
		}
	}
	if err != nil {
		a.warn("this folder will not remember its application: %v", err)
	}
}

// gitRemote is where pushes of an application go.
func (t *appTarget) gitRemote(one *v1alpha1.App) string {
	return cmp.Or(t.server, t.cluster.Host) + "/git/" + one.Namespace + "/" + one.Name + ".git"
}

// announce prints where something is about to change, if that is another machine.
func (a *app) announce(t *appTarget, what string) {
	where := t.where
	if where == "" {
		u, err := url.Parse(t.cluster.Host)
		if err != nil || u.Hostname() == "" || isHere(u.Hostname()) {
			return
		}
		where = u.Hostname()
	}
	if t.context != "" && t.context != where {
		where = t.context + " (" + where + ")"
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "→ %s on %s\n", what, where)
}

// isHere reports whether a host is this machine.
func isHere(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsLoopback() {
		return ip != nil
	}
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(addr net.Addr) bool {
		n, ok := addr.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}

// warn tells on standard error what keeps nothing from being done.
func (a *app) warn(format string, args ...any) {
	_, _ = fmt.Fprintf(a.env.Stderr, "gantry: "+format+"\n", args...)
}

// first is the only argument, or "".
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// atMostOne is the Args of commands that take an APP.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return usage("%q takes one %s at most, got %q; see \"%s --help\"", cmd.CommandPath(), what, args, cmd.CommandPath())
	}
}
