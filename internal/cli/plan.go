package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/internal/join"
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

const planLong = `Say what a deploy would change, or with -f what a manifest would do, without doing it.

Without -f the application's spec is compared with what a deploy of this folder, PATH, an IMAGE or a Compose file would write; the
cluster checks it as a dry run.

With -f the cluster checks the documents as a dry run. Then they are applied to a copy of the cluster in memory, on which the real
controllers and the real scheduler work; pods that get a node run at once. What changed in the copy is printed: which objects
and pods would be created, changed, moved, preempted or deleted, and which pods no node would take.`

func (a *app) planCommand() *cobra.Command {
	f := &deployFlags{}
	var file string
	cmd := f.register(&cobra.Command{
		Use: "plan [PATH|IMAGE|compose.yaml] [-f FILE]", Short: "Say what deploy would change, or a manifest (-f)", Long: planLong,
		Args: atMostOne("PATH, IMAGE or Compose file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case file == "":
				return a.planDeploy(cmd, f, first(args))
			case len(args) > 0:
				return usage("a plan is about %s or about the manifest %s, not both", args[0], file)
			case a.backend.Plan == nil:
				return usage("this program is for clients: plan -f needs one that can be a server")
			}
			return a.planManifest(cmd, f, file)
		},
	})
	f.registerSource(cmd)
	cmd.Flags().BoolVar(&f.takeOver, "take-over", false, "plan for an application that came from elsewhere")
	cmd.Flags().StringVarP(&file, "file", "f", "", "the manifest, YAML or JSON; - reads standard input")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "with -f: look at the copy after so long, whether it has come to rest or not")
	return cmd
}

func (a *app) planManifest(cmd *cobra.Command, f *deployFlags, file string) error {
	documents := a.env.Stdin
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return usage("open the manifest: %w", err)
		}
		defer func() { _ = opened.Close() }()
		documents = opened
	}
	t := &appTarget{context: f.context}
	cluster, err := a.clusterOf(cmd, t)
	if err != nil {
		return err
	}
	answer, err := a.backend.Plan(cmd.Context(), PlanRequest{
		Cluster: cluster, Project: cmp.Or(f.project, defaultProject), Documents: documents, Timeout: f.timeout, Progress: a.progress,
	})
	if err != nil {
		return err
	}
	return a.printAnswer(answer)
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
	anyServer(cluster, join.ReadServers(filepath.Join(filepath.Dir(path), join.ServersFile)))
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
