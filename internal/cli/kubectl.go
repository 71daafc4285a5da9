package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/internal/config"
)

// kubectlMissing says how to get kubectl: it is not part of the program, whose start it would slow.
const kubectlMissing = `kubectl is not on this machine: "make kubectl" in the source folder of Gantry builds it, and https://kubernetes.io/docs/tasks/tools has it ready to run`

func (a *app) kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl ...", Short: "Run this machine's kubectl on the cluster", GroupID: groupCluster,
		DisableFlagParsing: true, // every argument is kubectl's
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Flags before the word kubectl are ours, and cobra leaves them among the arguments.
			ours := a.env.Args[:slices.Index(a.env.Args, "kubectl")]
			args := a.env.Args[len(ours)+1:]
			flags := cmd.Root().PersistentFlags()
			if err := flags.Parse(ours); err != nil {
				return flagError(cmd.Root(), err)
			}
			program, err := a.findKubectl()
			if err != nil {
				return err
			}
			c, err := config.Load(config.Options{Flags: flags, Environ: a.settings()})
			if err != nil {
				return withCode(exitUsage, err)
			}
			environ := a.env.Environ
			if done, err := a.kubectlRemote(cmd.Context(), flags.Changed("kubeconfig") || flags.Changed("data-dir") || namesCluster(args), program, args); done {
				return err
			}
			if !namesCluster(args) {
				if _, err := readKubeconfig(c.Kubeconfig); err != nil {
					return err
				}
				environ = setEnv(environ, "KUBECONFIG", c.Kubeconfig)
			}
			return a.become(program, append([]string{"kubectl"}, args...), environ)
		},
	}
}

// kubectlRemote runs kubectl on the cluster of the current context. done is false if there is none, or it is not meant.
func (a *app) kubectlRemote(ctx context.Context, other bool, program string, args []string) (done bool, err error) {
	contexts, err := a.contexts()
	if other || err != nil || contexts.CurrentContext == "" {
		return err != nil && !other, err
	}
	text, ssh, err := a.contextKubeconfig(contexts.CurrentContext)
	if err != nil {
		return true, err
	}
	if ssh != nil {
		if text, err = a.tunnelled(ctx, text, ssh); err != nil {
			return true, err
		}
	}
	file, err := os.CreateTemp("", "gantry-kubeconfig-")
	if err != nil {
		return true, fmt.Errorf("write the kubeconfig: %w", err)
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return true, fmt.Errorf("write the kubeconfig: %w", err)
	}
	child := exec.CommandContext(context.WithoutCancel(ctx), program, args...) // it gets Ctrl-C itself
	child.Env, child.Stdin, child.Stdout, child.Stderr = setEnv(a.env.Environ, "KUBECONFIG", file.Name()), a.env.Stdin, a.env.Stdout, a.env.Stderr
	err = child.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return true, &exitError{exit.ExitCode(), nil}
	}
	return true, err
}

// tunnelled is a kubeconfig of one context whose server is reached through a tunnel.
func (a *app) tunnelled(ctx context.Context, text []byte, ssh *sshPlace) ([]byte, error) {
	config, err := clientcmd.Load(text)
	if err != nil {
		return nil, fmt.Errorf("read the context: %w", err)
	}
	for _, cluster := range config.Clusters {
		through := &rest.Config{Host: cluster.Server}
		if err := a.throughSSH(ctx, ssh, through); err != nil {
			return nil, err
		}
		cluster.Server, cluster.TLSServerName = through.Host, cmp.Or(cluster.TLSServerName, through.ServerName)
	}
	return clientcmd.Write(*config)
}

// setEnv returns environ with one entry for name: programs disagree which of two counts.
func setEnv(environ []string, name, value string) []string {
	rest := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
	return append(rest, name+"="+value)
}

// namesCluster reports whether the arguments choose a cluster themselves.
func namesCluster(args []string) bool {
	for _, arg := range args {
		if arg == "--" {
			return false
		}
		if arg == "--kubeconfig" || strings.HasPrefix(arg, "--kubeconfig=") {
			return true
		}
	}
	return false
}

// findKubectl looks beside this program first, where "make build" and the release put it, then on PATH.
func (a *app) findKubectl() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "kubectl")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	for _, dir := range filepath.SplitList(a.getenv("PATH")) {
		if dir == "" {
			continue
		}
		path, err := exec.LookPath(filepath.Join(dir, "kubectl"))
		if err == nil || errors.Is(err, exec.ErrDot) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s", kubectlMissing)
}
