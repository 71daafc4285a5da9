package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gantry.dev/gantry/internal/platform/deploy"
)

// completionTimeout bounds what the Tab key may wait for a cluster.
const completionTimeout = 2 * time.Second

// namesOf lists what a word may be, asking the cluster if need be.
type namesOf func(ctx context.Context, cmd *cobra.Command) ([]string, error)

// completeNames makes the shell complete the names of things: arguments by the placeholder in Use, flags by their name.
func (a *app) completeNames(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		a.completeNames(cmd)
	}
	if names, isFile := a.argumentOf(root); names != nil {
		root.ValidArgsFunction = a.completer(names)
	} else if !isFile && root.Runnable() && !root.DisableFlagParsing {
		root.ValidArgsFunction = cobra.NoFileCompletions
	}
	root.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		var names namesOf
		switch f.Name {
		case "app":
			names = a.appNames
		case "project":
			names = a.projectNames
		case "context":
			names = a.contextNames
		default:
			return
		}
		_ = root.RegisterFlagCompletionFunc(f.Name, func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.completer(names)(cmd, nil, word)
		})
	})
}

// argumentOf says what the first argument of a command is: names, or a file.
func (a *app) argumentOf(cmd *cobra.Command) (names namesOf, isFile bool) {
	words := strings.Fields(cmd.Use)
	if len(words) < 2 {
		return nil, false
	}
	parent := ""
	if cmd.HasParent() {
		parent = cmd.Parent().Name()
	}
	switch words[1] {
	case "APP", "[APP]":
		return a.appNames, false
	case "[vN]":
		return a.releaseNames, false
	case "[CONTEXT]":
		return a.contextNames, false
	case "FILE", "PATH", "[PATH]", "[PATH|IMAGE|compose.yaml]", "FILE|IMAGE", "[FILE|DIR|s3://BUCKET/PREFIX]":
		return nil, true
	case "NAME":
		switch parent + " " + cmd.Name() {
		case "node drain", "node rm", "node promote", "node demote":
			return a.nodeNames, false
		case "context use":
			return a.contextNames, false
		case "user rm":
			return a.userNames, false
		case "project rm":
			return a.projectNames, false
		}
	}
	return nil, false
}

// completer is names as cobra calls for them. Whatever goes wrong, the shell gets no names: nobody reads errors after Tab.
func (a *app) completer(names namesOf) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		found, err := names(ctx, cmd)
		if err != nil {
			cobra.CompErrorln(err.Error())
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

// targetForNames is where names come from. A cluster behind ssh is none: ssh may ask for a password, and takes its time.
func (a *app) targetForNames(cmd *cobra.Command) (*appTarget, bool, error) {
	f := &appFlags{}
	f.app, _ = cmd.Flags().GetString("app") // commands without the flag have ""
	f.project, _ = cmd.Flags().GetString("project")
	f.context, _ = cmd.Flags().GetString("context")
	t, known, err := a.placeOf(cmd, f)
	if err != nil {
		return nil, false, err
	}
	if cmd.Flags().Lookup("app") == nil {
		t.context = f.context // what a folder remembers is for applications
	}
	if ssh, err := a.needsSSH(cmd, t.context); err != nil || ssh {
		return nil, false, err
	}
	config, err := a.clusterOf(cmd, t)
	if err != nil {
		return nil, false, err
	}
	t.key.Name = cmp.Or(f.app, known.App)
	t.cluster, err = deploy.Connect(config)
	return t, err == nil, err
}

// needsSSH reports whether the cluster that is meant is reached through ssh.
func (a *app) needsSSH(cmd *cobra.Command, context string) (bool, error) {
	if hereFlags(cmd) {
		return false, nil
	}
	contexts, err := a.contexts()
	if err != nil {
		return false, err
	}
	one := contexts.Contexts[cmp.Or(context, contexts.CurrentContext)]
	return one != nil && sshOf(contexts.Clusters[one.Cluster]) != nil, nil
}

func (a *app) appNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	t, ok, err := a.targetForNames(cmd)
	if !ok {
		return nil, err
	}
	apps, err := t.cluster.Apps(ctx, t.key.Namespace)
	names := make([]string, 0, len(apps))
	for i := range apps {
		names = append(names, apps[i].Name)
	}
	return names, err
}

func (a *app) releaseNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	t, ok, err := a.targetForNames(cmd)
	if !ok || t.key.Name == "" {
		return nil, err
	}
	releases, err := t.cluster.Releases(ctx, t.key)
	names := make([]string, 0, len(releases))
	for i := range releases {
		names = append(names, versionText(releases[i].Spec.Number))
	}
	return names, err
}

func (a *app) nodeNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	t, ok, err := a.targetForNames(cmd)
	if !ok {
		return nil, err
	}
	c, err := a.machineClient(cmd, t)
	if err != nil {
		return nil, err
	}
	nodes, err := listNodes(ctx, c)
	names := make([]string, 0, len(nodes))
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names, err
}

func (a *app) userNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	t, ok, err := a.targetForNames(cmd)
	if !ok {
		return nil, err
	}
	users, _, err := a.accessTo(cmd, t)
	if err != nil {
		return nil, err
	}
	list, err := users.Users(ctx)
	names := make([]string, 0, len(list))
	for _, user := range list {
		names = append(names, user.Name)
	}
	return names, err
}

func (a *app) projectNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	t, ok, err := a.targetForNames(cmd)
	if !ok {
		return nil, err
	}
	projects, _, err := a.accessTo(cmd, t)
	if err != nil {
		return nil, err
	}
	list, err := projects.Projects(ctx)
	names := make([]string, 0, len(list))
	for _, p := range list {
		names = append(names, p.Name)
	}
	return names, err
}

func (a *app) contextNames(context.Context, *cobra.Command) ([]string, error) {
	contexts, err := a.contexts()
	if err != nil {
		return nil, err
	}
	return sortedKeys(contexts.Contexts), nil
}
