// Command helm does with Helm 4's library what Helm's own program does, for tests:
//
//	helm install   NAMESPACE RELEASE CHART [KEY=VALUE...]
//	helm upgrade   NAMESPACE RELEASE CHART [KEY=VALUE...]
//	helm rollback  NAMESPACE RELEASE REVISION
//	helm uninstall NAMESPACE RELEASE
//
// It waits for what it made to be ready and prints the revision and status of the release. KUBECONFIG
// names the cluster.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/strvals"
)

// timeout is the limit of one operation.
const timeout = time.Minute

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "helm:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	if len(args) < 3 {
		return fmt.Errorf("three arguments at least, got %q", args)
	}
	verb, namespace, name, rest := args[0], args[1], args[2], args[3:]
	settings := cli.New()
	settings.SetNamespace(namespace)
	config := action.NewConfiguration()
	if err := config.Init(settings.RESTClientGetter(), namespace, "secret"); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var err error
	switch verb {
	case "install", "upgrade":
		if len(rest) == 0 {
			return fmt.Errorf("%s: no chart", verb)
		}
		err = apply(config, verb, namespace, name, rest[0], rest[1:])
	case "rollback":
		err = rollback(config, name, rest)
	case "uninstall":
		uninstall := action.NewUninstall(config)
		uninstall.Timeout, uninstall.WaitStrategy = timeout, kube.StatusWatcherStrategy
		_, err := uninstall.Run(name)
		return err
	default:
		return fmt.Errorf("no such verb: %q", verb)
	}
	if err != nil {
		return err
	}
	return show(config, name, stdout)
}

// apply installs or upgrades a chart.
func apply(config *action.Configuration, verb, namespace, name, path string, set []string) error {
	chart, err := loader.Load(path)
	if err != nil {
		return fmt.Errorf("load the chart: %w", err)
	}
	values := make(map[string]any)
	for _, pair := range set {
		if err := strvals.ParseInto(pair, values); err != nil {
			return fmt.Errorf("read %q: %w", pair, err)
		}
	}
	if verb == "install" {
		install := action.NewInstall(config)
		install.Namespace, install.ReleaseName, install.CreateNamespace = namespace, name, true
		install.Timeout, install.WaitStrategy = timeout, kube.StatusWatcherStrategy
		_, err = install.Run(chart, values)
		return err
	}
	upgrade := action.NewUpgrade(config)
	upgrade.Namespace, upgrade.Timeout, upgrade.WaitStrategy = namespace, timeout, kube.StatusWatcherStrategy
	_, err = upgrade.Run(name, chart, values)
	return err
}

func rollback(config *action.Configuration, name string, rest []string) error {
	if len(rest) != 1 {
		return fmt.Errorf("rollback: want a revision, got %q", rest)
	}
	revision, err := strconv.Atoi(rest[0])
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	back := action.NewRollback(config)
	back.Version, back.Timeout, back.WaitStrategy = revision, timeout, kube.StatusWatcherStrategy
	return back.Run(name)
}

// show prints what is deployed.
func show(config *action.Configuration, name string, stdout io.Writer) error {
	current, err := action.NewGet(config).Run(name)
	if err != nil {
		return fmt.Errorf("get the release: %w", err)
	}
	accessor, err := release.NewAccessor(current)
	if err != nil {
		return fmt.Errorf("read the release: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "revision %d %s, applied by %s\n%s", accessor.Version(), accessor.Status(), accessor.ApplyMethod(), accessor.Notes())
	return err
}
