package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// sshExtension is the extension of a cluster that is reached through SSH, in the list of contexts.
const sshExtension = "gantry.dev/ssh"

// sshPlace is how a machine is reached by SSH.
type sshPlace struct {
	User    string `json:"user,omitempty"`
	Host    string `json:"host"`
	Port    string `json:"port,omitempty"`
	DataDir string `json:"dataDir,omitempty"` // of gantry there; empty is its default
}

func (a *app) contextsFile() string { return filepath.Join(a.configFolder(), "contexts") }

// contexts reads the list of contexts, which is a kubeconfig. Without a login there is none.
func (a *app) contexts() (*clientcmdapi.Config, error) {
	contexts, err := clientcmd.LoadFromFile(a.contextsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return nil, usage("%s is not a list of contexts: %v; mend or remove it", a.contextsFile(), err)
	}
	return contexts, nil
}

func (a *app) writeContexts(contexts *clientcmdapi.Config) error {
	if err := os.MkdirAll(a.configFolder(), 0o700); err != nil {
		return fmt.Errorf("make the folder of contexts: %w", err)
	}
	return writeKubeconfig(a.contextsFile(), contexts)
}

// sshOf says how a cluster is reached by SSH; nil is: not so.
func sshOf(cluster *clientcmdapi.Cluster) *sshPlace {
	if cluster == nil {
		return nil
	}
	raw, ok := cluster.Extensions[sshExtension].(*runtime.Unknown)
	if !ok {
		return nil
	}
	place := &sshPlace{}
	if json.Unmarshal(raw.Raw, place) != nil || place.Host == "" {
		return nil
	}
	return place
}

// addContext adds a context and makes it the one that commands use. Its entries are all called by its name.
func addContext(contexts *clientcmdapi.Config, name string, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo, ssh *sshPlace) error {
	if ssh != nil {
		raw, err := json.Marshal(ssh)
		if err != nil {
			return fmt.Errorf("write the context: %w", err)
		}
		cluster.Extensions = map[string]runtime.Object{sshExtension: &runtime.Unknown{Raw: raw, ContentType: runtime.ContentTypeJSON}}
	}
	contexts.Clusters[name], contexts.AuthInfos[name] = cluster, user
	contexts.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	contexts.CurrentContext = name
	return nil
}

// noContext is the error for a name that no login gave.
func noContext(contexts *clientcmdapi.Config, name string) error {
	if len(contexts.Contexts) == 0 {
		return usage("there is no context %q: no login was made; see \"gantry login\"", name)
	}
	names := sortedKeys(contexts.Contexts)
	return usage("%s", suggest(fmt.Sprintf("there is no context %q", name), name, names, "there is "+strings.Join(names, ", ")))
}

// hereFlags reports whether flags name a kubeconfig or this machine's data dir. They go before what a folder remembers and before the
// current context.
func hereFlags(cmd *cobra.Command) bool {
	return cmd.Flags().Changed("kubeconfig") || cmd.Flags().Changed("data-dir")
}

// fileContext is a context of the file that --kubeconfig names.
func (a *app) fileContext(cmd *cobra.Command, name string) (*rest.Config, error) {
	path, err := a.kubeconfigPath(cmd)
	if err != nil {
		return nil, err
	}
	file, err := loadKubeconfig(path)
	if err != nil {
		return nil, err
	}
	if file.Contexts[name] == nil {
		names := sortedKeys(file.Contexts)
		return nil, usage("%s", suggest(fmt.Sprintf("%s has no context %q", path, name), name, names, "there is "+strings.Join(names, ", ")))
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*file, name, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, usage("the context %q of %s: %w", name, path, err)
	}
	return config, nil
}

// loadKubeconfig reads a file whose certificates may be files beside it.
func loadKubeconfig(path string) (*clientcmdapi.Config, error) {
	if _, err := readKubeconfig(path); err != nil {
		return nil, err
	}
	file, err := clientcmd.LoadFromFile(path)
	if err == nil {
		err = clientcmd.ResolveLocalPaths(file)
	}
	if err != nil {
		return nil, usage("%s is not a kubeconfig: %w", path, err)
	}
	return file, nil
}

// contextAdd copies a context of a kubeconfig into the list.
func (a *app) contextAdd(cmd *cobra.Command, name, from string) error {
	path := a.userKubeconfig()
	if cmd.Flags().Changed("kubeconfig") {
		var err error
		if path, err = a.kubeconfigPath(cmd); err != nil {
			return err
		}
	}
	file, err := loadKubeconfig(path)
	if err != nil {
		return err
	}
	if from = cmp.Or(from, file.CurrentContext); from == "" {
		return usage("%s has no current context; say which with --context: %s", path, strings.Join(sortedKeys(file.Contexts), ", "))
	}
	if file.Contexts[from] == nil {
		names := sortedKeys(file.Contexts)
		return usage("%s", suggest(fmt.Sprintf("%s has no context %q", path, from), from, names, "there is "+strings.Join(names, ", ")))
	}
	file.CurrentContext = from
	err = clientcmdapi.MinifyConfig(file)
	if err == nil {
		err = clientcmdapi.FlattenConfig(file) // what is in files beside it comes along
	}
	if err != nil {
		return usage("the context %q of %s: %w", from, path, err)
	}
	contexts, err := a.contexts()
	if err != nil {
		return err
	}
	if contexts.Contexts[name] != nil {
		return usage("there is a context %q already; \"gantry logout %s\" forgets it", name, name)
	}
	entry := file.Contexts[from]
	user := file.AuthInfos[entry.AuthInfo]
	if user == nil {
		user = clientcmdapi.NewAuthInfo()
	}
	if err := addContext(contexts, name, file.Clusters[entry.Cluster], user, nil); err != nil {
		return err
	}
	a.findServers(cmd.Context(), contexts, name)
	if err := a.writeContexts(contexts); err != nil {
		return err
	}
	return a.printf("commands now use %s, at %s\n", name, file.Clusters[entry.Cluster].Server)
}

// clusterOf is the cluster of a context: one of those that logins wrote, or this machine's own. With --kubeconfig it is one of that file.
func (a *app) clusterOf(cmd *cobra.Command, t *appTarget) (*rest.Config, error) {
	if cmd.Flags().Changed("kubeconfig") && t.context != "" { // it is one of that file
		name := t.context
		t.context = ""
		return a.fileContext(cmd, name)
	}
	if hereFlags(cmd) && t.context == "" {
		return a.cluster(cmd)
	}
	contexts, err := a.contexts()
	if err != nil {
		return nil, err
	}
	if t.context = cmp.Or(t.context, contexts.CurrentContext); t.context == "" {
		return a.cluster(cmd)
	}
	if contexts.Contexts[t.context] == nil {
		return nil, noContext(contexts, t.context)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*contexts, t.context, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, usage("the context %q: %w", t.context, err)
	}
	ssh := sshOf(contexts.Clusters[contexts.Contexts[t.context].Cluster])
	if ssh == nil {
		anyServer(config, serversOf(contexts.Clusters[contexts.Contexts[t.context].Cluster]))
		return config, nil
	}
	t.server, t.where = config.Host, ssh.Host
	return config, a.throughSSH(cmd.Context(), ssh, config)
}

// contextRow is one context in "context ls".
type contextRow struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Server  string `json:"server"`
	Through string `json:"through,omitempty"`
}

func (a *app) contextCommand() *cobra.Command {
	list := &cobra.Command{Use: "ls", Short: "List the clusters that you logged in to", Args: exactArgs(), RunE: func(*cobra.Command, []string) error {
		contexts, err := a.contexts()
		if err != nil {
			return err
		}
		rows, docs := [][]string{{"", "CONTEXT", "SERVER", "THROUGH"}}, []contextRow{}
		for _, name := range sortedKeys(contexts.Contexts) {
			row := contextRow{Name: name, Current: name == contexts.CurrentContext}
			if cluster := contexts.Clusters[contexts.Contexts[name].Cluster]; cluster != nil {
				row.Server = cluster.Server
				if ssh := sshOf(cluster); ssh != nil {
					row.Through = ssh.String()
				}
			}
			mark := ""
			if row.Current {
				mark = "*"
			}
			docs = append(docs, row)
			rows = append(rows, []string{mark, row.Name, row.Server, row.Through})
		}
		if a.json {
			return a.printJSON(docs)
		}
		return a.printTable(rows)
	}}
	use := &cobra.Command{Use: "use NAME", Short: "Make a context the one that commands use; - is this machine's own cluster", Args: exactArgs("the NAME"), RunE: func(_ *cobra.Command, args []string) error {
		contexts, err := a.contexts()
		if err != nil {
			return err
		}
		name := args[0]
		if name == "-" {
			name = ""
		} else if contexts.Contexts[name] == nil {
			return noContext(contexts, name)
		}
		contexts.CurrentContext = name
		if err := a.writeContexts(contexts); err != nil {
			return err
		}
		return a.printf("commands now use %s\n", cmp.Or(name, "this machine's own cluster"))
	}}
	var from string
	add := &cobra.Command{
		Use: "add NAME", Short: "Add a cluster from a kubeconfig (--kubeconfig, or kubectl's own) and use it", Args: exactArgs("the NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.contextAdd(cmd, args[0], from) },
	}
	add.Flags().StringVar(&from, "context", "", "one of the kubeconfig's (default: its current one)")
	cmd := parent("context", "List, choose and add clusters", list, use, add)
	cmd.GroupID = groupCluster
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout [CONTEXT]", Short: "Forget a cluster and its credentials", GroupID: groupCluster, Args: atMostOne("CONTEXT"),
		RunE: func(_ *cobra.Command, args []string) error {
			contexts, err := a.contexts()
			if err != nil {
				return err
			}
			name := cmp.Or(first(args), contexts.CurrentContext)
			if name == "" {
				return usage("you are not logged in anywhere")
			}
			if contexts.Contexts[name] == nil {
				return noContext(contexts, name)
			}
			delete(contexts.Contexts, name)
			delete(contexts.Clusters, name)
			delete(contexts.AuthInfos, name)
			if contexts.CurrentContext == name {
				contexts.CurrentContext = ""
			}
			if err := a.writeContexts(contexts); err != nil {
				return err
			}
			a.forget(name)
			return a.printf("logged out of %s\n", name)
		},
	}
}

// forget takes a context out of what folders remember.
func (a *app) forget(name string) {
	for folder, known := range a.places() {
		if known.Context == name {
			known.Context = ""
			a.remember(folder, known)
		}
	}
}

// contextKubeconfig is a kubeconfig of one context alone.
func (a *app) contextKubeconfig(name string) ([]byte, *sshPlace, error) {
	contexts, err := a.contexts()
	if err != nil {
		return nil, nil, err
	}
	context := contexts.Contexts[name]
	if context == nil {
		return nil, nil, noContext(contexts, name)
	}
	out := clientcmdapi.NewConfig()
	cluster := contexts.Clusters[context.Cluster].DeepCopy()
	ssh := sshOf(cluster)
	cluster.Extensions = nil
	out.Clusters[name], out.AuthInfos[name], out.Contexts[name], out.CurrentContext = cluster, contexts.AuthInfos[context.AuthInfo], context, name
	text, err := clientcmd.Write(*out)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the kubeconfig: %w", err)
	}
	return text, ssh, nil
}

// freeName is a name for a context that no other has, or that of the one for the same server.
func freeName(contexts *clientcmdapi.Config, wanted, server string) string {
	for i := 1; ; i++ {
		name := wanted
		if i > 1 {
			name = fmt.Sprintf("%s-%d", wanted, i)
		}
		there := contexts.Clusters[name]
		if there == nil || there.Server == server {
			return name
		}
	}
}
