package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon/pack"
	"gantry.dev/gantry/internal/platform/deploy"
)

func keyOf(obj client.Object) types.NamespacedName { return client.ObjectKeyFromObject(obj) }

// addonTarget is an addon that runs.
type addonTarget struct {
	*appTarget
	name  string
	addon v1alpha1.Addon
	pack  *pack.Package
	pod   *corev1.Pod
}

// addonTarget finds an addon's pod.
func (a *app) addonTarget(cmd *cobra.Command, f *appFlags, name string) (*addonTarget, error) {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return nil, err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return nil, err
	}
	out := &addonTarget{appTarget: t, name: name, pod: &corev1.Pod{}}
	var has bool
	if out.addon, has = one.Spec.Addons[name]; !has {
		return nil, a.noAddon(one, name)
	}
	if out.pack, err = pack.Find(out.addon.Type); err != nil {
		return nil, err
	}
	key := types.NamespacedName{Namespace: t.key.Namespace, Name: v1alpha1.ObjectName(t.key.Name, name) + "-0"}
	err = t.cluster.Client.Get(cmd.Context(), key, out.pod)
	if client.IgnoreNotFound(err) != nil {
		return nil, deploy.Reached("look for the addon's container", err)
	}
	if err != nil || stateOf(out.pod) != "running" {
		return nil, fmt.Errorf("the addon %s does not run: %s", name, strings.TrimSpace(one.Status.Addons[name].Message+" "+podTrouble(out.pod)))
	}
	return out, nil
}

func (a *app) addonConnectCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "connect NAME", Short: "Open psql or redis-cli on an addon; without a terminal it reads commands", Args: exactArgs("the addon's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.addonTarget(cmd, f, args[0])
			if err != nil {
				return err
			}
			a.announce(t.appTarget, t.pod.Name)
			return a.stream(cmd.Context(), t.appTarget, t.pod, "exec", []string{"sh", "-c", t.pack.Connect}, false)
		},
	})
}

func (a *app) addonDumpCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "dump NAME > FILE", Short: "Write an addon's data to standard output", Args: exactArgs("the addon's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out, isFile := a.env.Stdout.(*os.File); isFile && term.IsTerminal(int(out.Fd())) {
				return usage("a dump is nothing to read: write it to a file with \"> FILE\"")
			}
			t, err := a.addonTarget(cmd, f, args[0])
			if err != nil {
				return err
			}
			progress := a.progressOf("dumped")
			err = t.script(cmd.Context(), t.pack.Dump, nil, progress.writer(a.env.Stdout), a.env.Stderr)
			progress.end()
			if err != nil {
				return fmt.Errorf("the dump is not whole: %w", err)
			}
			return nil
		},
	})
}

func (a *app) addonLoadCommand() *cobra.Command {
	f := &appFlags{}
	var backup string
	cmd := f.register(&cobra.Command{
		Use: "load NAME < FILE", Short: "Replace an addon's data by a dump or a backup", Args: exactArgs("the addon's NAME"),
		Long: "Replace an addon's data by what standard input holds: what \"addon dump\" wrote, or SQL. What fails changes nothing. Tables of postgres that are\n" +
			"not in the dump stay. redis restarts for it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.addonTarget(cmd, f, args[0])
			if err != nil {
				return err
			}
			a.announce(t.appTarget, t.pod.Name)
			if backup == "" {
				return a.addonLoad(cmd.Context(), t)
			}
			if err := a.confirm(fmt.Sprintf("Replace the data of %s by the backup %s", t.name, backup)); err != nil {
				return err
			}
			if strings.ContainsAny(backup, "/\n") || strings.HasPrefix(backup, ".") {
				return usage("%q is no name of \"gantry addon backup ls\"", backup)
			}
			script := "exec < \"/backup/$0\" || exit 1\n" + t.pack.Load
			if err := t.script(cmd.Context(), script, nil, a.env.Stderr, a.env.Stderr, backup); err != nil {
				return fmt.Errorf("the backup was not loaded: %w", err)
			}
			return a.loaded(cmd.Context(), t)
		},
	})
	cmd.Flags().StringVar(&backup, "backup", "", "load one of \"gantry addon backup ls\" instead")
	return cmd
}

// addonLoad loads standard input.
func (a *app) addonLoad(ctx context.Context, t *addonTarget) error {
	if in, isFile := a.env.Stdin.(*os.File); isFile && term.IsTerminal(int(in.Fd())) {
		return usage("a dump is read from standard input: gantry addon load %s < FILE", t.name)
	}
	in := bufio.NewReader(a.env.Stdin)
	begin, err := in.Peek(max(len(t.pack.Magic), 1))
	if len(begin) == 0 {
		return usage("there is nothing on standard input")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the dump: %w", err)
	}
	script := t.pack.Load
	if t.pack.Magic != "" && string(begin) != t.pack.Magic {
		script = t.pack.LoadText
	}
	progress := a.progressOf("loaded")
	err = t.script(ctx, script, progress.reader(in), a.env.Stderr, a.env.Stderr)
	progress.end()
	if err != nil {
		return fmt.Errorf("the data was not loaded, nothing was changed: %w", err)
	}
	return a.loaded(ctx, t)
}

// loaded restarts what reads its data only then.
func (a *app) loaded(ctx context.Context, t *addonTarget) error {
	if t.pack.Restart {
		before := t.pod.UID
		if err := t.cluster.Client.Delete(ctx, t.pod, client.Preconditions{UID: &before}); err != nil && !apierrors.IsNotFound(err) {
			return deploy.Reached("restart the addon", err)
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		err := t.cluster.Await(ctx, t.key.Namespace, func() (bool, error) {
			pod := &corev1.Pod{}
			err := t.cluster.Client.Get(ctx, keyOf(t.pod), pod)
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil && pod.UID != before && stateOf(pod) == "running", err
		}, &corev1.PodList{})
		if err != nil {
			return fmt.Errorf("wait until %s runs with the new data: %w", t.name, err)
		}
	}
	return a.printf("%s is loaded\n", t.name)
}

func (a *app) addonBackupCommand() *cobra.Command {
	f := &appFlags{}
	return parent("backup", "Backups of addons", a.addonBackupNowCommand(), f.register(&cobra.Command{
		Use: "ls NAME", Short: "List the backups of an addon, the newest first", Args: exactArgs("the addon's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.addonTarget(cmd, f, args[0])
			if err != nil {
				return err
			}
			var text strings.Builder
			const list = `cd /backup 2>/dev/null || exit 0
for file in $(ls -1r); do printf '%s %s\n' "$file" "$(wc -c < "$file")"; done`
			if err := t.script(cmd.Context(), list, nil, &text, a.env.Stderr); err != nil {
				return fmt.Errorf("list the backups: %w", err)
			}
			type backupRow struct {
				Name string `json:"name"`
				Size string `json:"bytes"`
			}
			rows, docs := [][]string{{"BACKUP", "BYTES"}}, []backupRow{}
			for line := range strings.Lines(text.String()) {
				name, size, _ := strings.Cut(strings.TrimSpace(line), " ")
				docs = append(docs, backupRow{name, size})
				rows = append(rows, []string{name, size})
			}
			switch {
			case a.json:
				return a.printJSON(docs)
			case len(docs) == 0 && t.addon.Backup == "":
				a.warn("%s is not backed up: say when in gantry.yaml, as in backup: daily", t.name)
			case len(docs) == 0:
				a.warn("there is no backup of %s yet", t.name)
			}
			return a.printTable(rows)
		},
	}))
}

// script runs a script in the addon's container to its end.
func (t *addonTarget) script(ctx context.Context, script string, in io.Reader, out, complaints io.Writer, args ...string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	options := corev1.PodExecOptions{Container: t.pod.Spec.Containers[0].Name, Command: append([]string{"sh", "-c", script}, args...), Stdin: in != nil, Stdout: true, Stderr: true}
	target, err := t.cluster.StreamURL(t.pod, "exec", options)
	if err != nil {
		return err
	}
	socket, err := remotecommand.NewWebSocketExecutor(t.cluster.Config, "GET", target.String())
	if err != nil {
		return fmt.Errorf("prepare to reach the container: %w", err)
	}
	err = socket.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: complaints})
	if code, ended := errors.AsType[utilexec.CodeExitError](err); ended {
		return fmt.Errorf("the program in %s ended with %d", t.pod.Name, code.Code)
	}
	if err != nil {
		return deploy.Reached("run it in "+t.pod.Name, err)
	}
	return nil
}

// transfer counts bytes and shows them on a terminal.
type transfer struct {
	app   *app
	word  string
	count int64
	shown time.Time
}

func (a *app) progressOf(word string) *transfer { return &transfer{app: a, word: word} }

func (t *transfer) add(n int) {
	t.count += int64(n)
	if t.app.draws() && time.Since(t.shown) > time.Second/2 {
		t.shown = time.Now()
		_, _ = fmt.Fprintf(t.app.env.Stderr, "\r%s %.1f MB", t.word, float64(t.count)/1e6)
	}
}

// end says how much it was.
func (t *transfer) end() {
	if t.app.draws() {
		_, _ = fmt.Fprintf(t.app.env.Stderr, "\r%s %.1f MB\n", t.word, float64(t.count)/1e6)
	}
}

func (t *transfer) writer(w io.Writer) io.Writer { return countedWriter{w, t} }
func (t *transfer) reader(r io.Reader) io.Reader { return countedReader{r, t} }

type countedWriter struct {
	to       io.Writer
	transfer *transfer
}

// Write implements io.Writer.
func (c countedWriter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.transfer.add(n)
	return n, err //nolint:wrapcheck // it only counts
}

type countedReader struct {
	from     io.Reader
	transfer *transfer
}

// Read implements io.Reader.
func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.transfer.add(n)
	return n, err //nolint:wrapcheck // io.EOF must stay itself
}
