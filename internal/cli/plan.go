package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// PlanRequest says what to plan.
type PlanRequest struct {
	Cluster   *rest.Config
	Project   string    // of objects that name none
	Documents io.Reader // YAML or JSON
	Timeout   time.Duration
	Progress  func(string)
}

// Answer is what a question about the cluster comes to.
type Answer struct {
	Document any      // for --json
	Text     string   // for people
	Warnings []string // what the answer does not know
}

// WrongInput gives an error of a file or an argument its exit code.
func WrongInput(err error) error { return withCode(exitUsage, err) }

// Unreachable gives an error of a cluster that cannot be asked its exit code.
func Unreachable(err error) error { return withCode(exitUnreachable, err) }

const planLong = `Say what a manifest would do, without doing it.

The cluster checks the documents as a dry run. Then they are applied to a copy of the cluster in memory, on which the real
controllers and the real scheduler work; pods that get a node run at once. What changed in the copy is printed: which objects
and pods would be created, changed, moved, preempted or deleted, and which pods no node would take.`

func (a *app) planCommand() *cobra.Command {
	var file, project string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Say what a manifest would do, on a copy of the cluster", Long: planLong, GroupID: groupApplication, Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage("say which manifest: plan -f FILE, or -f - for standard input")
			}
			documents := a.env.Stdin
			if file != "-" {
				opened, err := os.Open(file)
				if err != nil {
					return usage("open the manifest: %w", err)
				}
				defer func() { _ = opened.Close() }()
				documents = opened
			}
			cluster, err := a.cluster(cmd)
			if err != nil {
				return err
			}
			answer, err := a.backend.Plan(cmd.Context(), PlanRequest{
				Cluster: cluster, Project: project, Documents: documents, Timeout: timeout, Progress: a.progress,
			})
			if err != nil {
				return err
			}
			return a.printAnswer(answer)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the manifest, YAML or JSON; - reads standard input")
	cmd.Flags().StringVarP(&project, "project", "p", "default", "the namespace of objects that name none")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "look at the copy after so long, whether it has come to rest or not")
	return cmd
}

func (a *app) whyCommand() *cobra.Command {
	var project string
	cmd := &cobra.Command{
		Use: "why TYPE/NAME", Short: "Explain why a pod is where it is, or nowhere", GroupID: groupApplication, Args: exactArgs("a TYPE/NAME, such as pod/web-1,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, found := strings.Cut(args[0], "/")
			if !found || name == "" {
				return usage("%q is no TYPE/NAME, such as pod/web-1", args[0])
			}
			if !slices.Contains([]string{"pod", "pods", "po"}, kind) {
				return usage("%s", suggest(fmt.Sprintf("nothing is known about a %q", kind), kind, []string{"pod"}, "there is: pod"))
			}
			cluster, err := a.cluster(cmd)
			if err != nil {
				return err
			}
			answer, err := a.backend.WhyPod(cmd.Context(), cluster, project, name)
			if err != nil {
				return err
			}
			return a.printAnswer(answer)
		},
	}
	cmd.Flags().StringVarP(&project, "project", "p", "default", "the pod's namespace")
	return cmd
}

// cluster is how to reach the cluster of the kubeconfig.
func (a *app) cluster(cmd *cobra.Command) (*rest.Config, error) {
	path, err := a.kubeconfigPath(cmd)
	if err != nil {
		return nil, err
	}
	text, err := readKubeconfig(path)
	if err != nil {
		return nil, err
	}
	cluster, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		return nil, usage("%s is not a kubeconfig: %w", path, err)
	}
	return cluster, nil
}

func (a *app) progress(what string) {
	if a.env.IsTerminal && !a.json {
		_, _ = fmt.Fprintf(a.env.Stderr, "%s\n", what)
	}
}

func (a *app) printAnswer(answer Answer) error {
	for _, warning := range answer.Warnings {
		_, _ = fmt.Fprintf(a.env.Stderr, "gantry: %s\n", warning)
	}
	if a.json {
		return a.printJSON(answer.Document)
	}
	return a.printf("%s", answer.Text)
}
