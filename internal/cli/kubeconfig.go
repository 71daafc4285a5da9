package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gantry.dev/gantry/internal/durable"
)

// entryName is what the cluster and the context are called in kubeconfigs, and entryPrefix starts
// the names of the users.
const (
	entryName   = "gantry"
	entryPrefix = "gantry-"
)

func (a *app) kubeconfigCommand() *cobra.Command {
	var merge bool
	var context string
	cmd := &cobra.Command{
		Use: "kubeconfig", Short: "Print a kubeconfig: this machine's administrator's, or a context's", GroupID: groupCluster, Args: exactArgs(),
	}
	cmd.Flags().BoolVar(&merge, "merge", false, "merge it into ~/.kube/config (or the first file of $KUBECONFIG) and make it the current context")
	cmd.Flags().StringVar(&context, "context", "", "one of \"gantry context ls\" (default: the current one; - is this machine's own)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		text, err := a.kubeconfigText(cmd, context)
		if err != nil {
			return err
		}
		if !merge {
			return a.printf("%s", text)
		}
		target := a.userKubeconfig()
		if err := mergeKubeconfig(target, text); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(a.env.Stderr, "%s now holds the context %q\n", target, cmp.Or(context, entryName))
		return nil
	}
	return cmd
}

// kubeconfigText is the kubeconfig of a context, or of this machine's own cluster.
func (a *app) kubeconfigText(cmd *cobra.Command, context string) ([]byte, error) {
	if context == "" && !cmd.Flags().Changed("kubeconfig") && !cmd.Flags().Changed("data-dir") {
		if contexts, err := a.contexts(); err == nil {
			context = contexts.CurrentContext
		}
	}
	if context == "" || context == "-" {
		path, err := a.kubeconfigPath(cmd)
		if err != nil {
			return nil, err
		}
		return readKubeconfig(path)
	}
	text, ssh, err := a.contextKubeconfig(context)
	if ssh != nil {
		a.warn("%s is reached through ssh, which kubectl does not do by itself: use \"gantry kubectl\"", context)
	}
	return text, err
}

func (a *app) kubeconfigPath(cmd *cobra.Command) (string, error) {
	c, err := a.load(cmd, true)
	return c.Kubeconfig, err
}

func readKubeconfig(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, withCode(exitUnreachable, fmt.Errorf("there is no kubeconfig at %s; start a node with \"gantry up\", or name its --data-dir", path))
	case errors.Is(err, fs.ErrPermission):
		return nil, withCode(exitUnreachable, fmt.Errorf("%s is for root alone; try again with sudo", path))
	case err != nil:
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	return text, nil
}

// userKubeconfig is the file that kubectl would write to: the first of $KUBECONFIG, else ~/.kube/config.
func (a *app) userKubeconfig() string {
	for _, path := range filepath.SplitList(a.getenv("KUBECONFIG")) {
		if path != "" {
			return path
		}
	}
	return filepath.Join(a.getenv("HOME"), ".kube", "config")
}

func (a *app) getenv(name string) string {
	value := ""
	for _, entry := range a.env.Environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest // as in os/exec, the last one counts
		}
	}
	return value
}

// mergeKubeconfig puts our cluster, user and context into the file, which keeps all other entries.
func mergeKubeconfig(target string, ours []byte) error {
	from, err := clientcmd.Load(ours)
	if err != nil {
		return fmt.Errorf("read the admin kubeconfig: %w", err)
	}
	into, err := clientcmd.LoadFromFile(target)
	if errors.Is(err, fs.ErrNotExist) {
		into, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return usage("%s is not a kubeconfig: %v; mend or move it, and try again", target, err)
	}
	for name, cluster := range from.Clusters {
		into.Clusters[name] = cluster
	}
	for name, user := range from.AuthInfos {
		into.AuthInfos[name] = user
	}
	for name, context := range from.Contexts {
		into.Contexts[name] = context
	}
	into.CurrentContext = from.CurrentContext
	return writeKubeconfig(target, into)
}

// removeFromUserKubeconfig takes our entries out again and reports whether there were any.
func removeFromUserKubeconfig(target string) (bool, error) {
	config, err := clientcmd.LoadFromFile(target)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", target, err)
	}
	if config.Contexts[entryName] == nil && config.Clusters[entryName] == nil {
		return false, nil
	}
	delete(config.Contexts, entryName)
	delete(config.Clusters, entryName)
	for name := range config.AuthInfos {
		if strings.HasPrefix(name, entryPrefix) {
			delete(config.AuthInfos, name)
		}
	}
	if config.CurrentContext == entryName {
		config.CurrentContext = ""
	}
	return true, writeKubeconfig(target, config)
}

func writeKubeconfig(path string, config *clientcmdapi.Config) error {
	text, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return durable.WriteFile(path, text, 0o600)
}
