package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gantry.dev/gantry/internal/config"
)

// Env is the outside of one call: tests bring their own.
type Env struct {
	Args       []string // without the program's name
	Environ    []string
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer
	IsTerminal bool   // a person can answer a question on Stdin
	Version    string // of Gantry, stamped at build time
	Commit     string
}

// Main runs one command and returns the process's exit code.
func Main(ctx context.Context, env Env, backend Backend) int {
	app := &app{env: env, backend: backend}
	root := app.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	for _, end := range app.closers {
		end()
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			_, _ = fmt.Fprintf(env.Stderr, "gantry: %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return codeOf(err)
}

// app is what the commands of one call share.
type app struct {
	env     Env
	backend Backend
	closers []func() // end what runs beside the command, such as ssh
	json    bool
	yes     bool
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "gantry",
		Short:         "Turns machines into a Kubernetes-compatible cluster",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          func(cmd *cobra.Command, args []string) error { return unknownCommand(cmd, args) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	config.Register(root.PersistentFlags(), config.KeyConfig, config.KeyDataDir, config.KeyKubeconfig)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON document")
	root.PersistentFlags().BoolVarP(&a.yes, "yes", "y", false, "answer every question with yes")
	root.AddGroup(&cobra.Group{ID: groupMachine, Title: "Machine:"}, &cobra.Group{ID: groupCluster, Title: "Cluster:"})
	root.AddCommand(a.machineCommands()...)
	root.AddCommand(a.versionCommand(), a.statusCommand(), a.kubeconfigCommand(), a.kubectlCommand())
	root.AddCommand(a.tokenCommand(), a.nodeCommand(), a.upgradeCommand())
	root.AddCommand(a.loginCommand(), a.logoutCommand(), a.contextCommand(), a.userCommand(), a.projectCommand(), a.platformCommand())
	if a.backend.Images != nil {
		root.AddCommand(a.imageCommand())
	}
	if a.backend.ProbeImage != nil {
		root.AddCommand(a.networkCommand())
	}
	root.AddCommand(a.backupCommand())
	if a.backend.Backups != nil {
		root.AddCommand(a.restoreCommand())
	}
	root.AddGroup(&cobra.Group{ID: groupApplication, Title: "Application (this folder's, or APP, or -a APP):"})
	root.AddCommand(a.applicationCommands()...)
	root.AddCommand(a.manCommand())
	a.completeNames(root)
	return root
}

const (
	groupMachine     = "machine"
	groupCluster     = "cluster"
	groupApplication = "application"
)

// load reads the configuration. Commands that only need to find the node's files pass light: then the
// machine is not asked for its name and addresses.
func (a *app) load(cmd *cobra.Command, light bool) (config.Config, error) {
	opts := config.Options{Flags: cmd.Flags(), Environ: a.settings(), ReadFile: os.ReadFile}
	if !light {
		opts.Hostname, opts.NodeIP = os.Hostname, config.HostNodeIP
	}
	c, err := config.Load(opts)
	return c, withCode(exitUsage, err)
}

// printJSON writes v as one indented document.
func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(a.env.Stdout)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.env.Stdout, format, args...); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// confirm asks a yes-or-no question; anything but yes is an error. Without a terminal it is one that names --yes.
func (a *app) confirm(question string) error {
	yes, err := a.ask(question)
	if err == nil && !yes {
		return errors.New("nothing was done")
	}
	return err
}

// ask asks a yes-or-no question. Without a terminal it is an error that names --yes.
func (a *app) ask(question string) (bool, error) {
	if a.yes {
		return true, nil
	}
	if !a.env.IsTerminal {
		return false, usage("%s: there is no terminal to ask on; say --yes", question)
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "%s? [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(a.env.Stdin, &answer); err != nil && !errors.Is(err, io.EOF) && answer != "" {
		return false, fmt.Errorf("read answer: %w", err)
	}
	answer = strings.ToLower(answer)
	return answer == "y" || answer == "yes", nil
}

// exactArgs is cobra.ExactArgs with our words and exit code.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return usage("%q takes no arguments, got %q; see \"%s --help\"", cmd.CommandPath(), args, cmd.CommandPath())
		}
		return usage("%q needs %s, got %d arguments; see \"%s --help\"", cmd.CommandPath(), strings.Join(names, " and "), len(args), cmd.CommandPath())
	}
}

// unknownCommand is the Args of commands that only hold others.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return usage("%s", suggest(fmt.Sprintf("%q is not a command of %q", args[0], cmd.CommandPath()), args[0], names,
		fmt.Sprintf("see %q", cmd.CommandPath()+" --help")))
}

// flagError names the nearest flag for an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usage("%w; see \"%s --help\"", err, cmd.CommandPath())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	word := unknown.GetSpecifiedName()
	return usage("%s", suggest(fmt.Sprintf("%q has no flag --%s", cmd.CommandPath(), word), word, names,
		fmt.Sprintf("see %q", cmd.CommandPath()+" --help"), "--"))
}

func suggest(problem, word string, names []string, otherwise string, prefix ...string) string {
	slices.Sort(names)
	if near := config.Nearest(word, names); near != "" {
		return fmt.Sprintf("%s: did you mean \"%s%s\"?", problem, strings.Join(prefix, ""), near)
	}
	return problem + "; " + otherwise
}
