package cli

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// keptRemoved is how long a removed application can be brought back.
const keptRemoved = 7 * 24 * time.Hour

// applicationCommands are those of the grammar's part APPLICATION.
func (a *app) applicationCommands() []*cobra.Command {
	return []*cobra.Command{
		a.initCommand(), a.deployCommand(), a.planCommand(), a.whyCommand(), a.ejectCommand(),
		a.appCommand(), a.openCommand(), a.logsCommand(), a.psCommand(), a.restartCommand(), a.scaleCommand(), a.runCommand(), a.execCommand(),
		a.releaseCommand(), a.rollbackCommand(), a.promoteCommand(), a.abortCommand(),
		a.envCommand(), a.secretCommand(), a.domainCommand(), a.volumeCommand(), a.addonCommand(),
	}
}

// parent is a command that only holds others.
func parent(name, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, GroupID: groupApplication, Args: unknownCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	for _, sub := range subs {
		sub.GroupID = ""
	}
	cmd.AddCommand(subs...)
	return cmd
}

func (a *app) appCommand() *cobra.Command {
	return parent("app", "List, remove and bring back applications", a.appListCommand(), a.appRemoveCommand(), a.appUndoCommand())
}

// appRow is one application in "app ls".
type appRow struct {
	Project string   `json:"project"`
	Name    string   `json:"name"`
	Phase   string   `json:"phase"`
	Release int64    `json:"release"`
	URLs    []string `json:"urls"`
	Message string   `json:"message,omitempty"`
	Git     string   `json:"git"` // where `git push` goes
}

func rowOf(t *appTarget, one v1alpha1.App) appRow {
	return appRow{one.Namespace, one.Name, phaseOf(&one), one.Status.Release, one.Status.URLs, one.Status.Message, t.gitRemote(&one)}
}

// phaseOf is an application's phase, before its controller saw it, too.
func phaseOf(one *v1alpha1.App) string {
	if one.Annotations[v1alpha1.AnnotationRemoved] != "" {
		return v1alpha1.AppRemoved
	}
	return cmp.Or(one.Status.Phase, v1alpha1.AppPending)
}

func (a *app) appListCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "ls", Short: "List applications, of all projects or one (-p)", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, _, err := a.connect(cmd, f)
			if err != nil {
				return err
			}
			apps, err := t.cluster.Apps(cmd.Context(), f.project)
			if err != nil {
				return err
			}
			rows, docs := [][]string{{"PROJECT", "APP", "PHASE", "RELEASE", "URL"}}, []appRow{}
			for _, one := range apps {
				row := rowOf(t, one)
				docs = append(docs, row)
				rows = append(rows, []string{row.Project, row.Name, strings.ToLower(row.Phase), versionText(row.Release), first(row.URLs)})
			}
			if a.json {
				return a.printJSON(docs)
			}
			return a.printTable(rows)
		},
	})
}

func versionText(number int64) string {
	if number == 0 {
		return "-"
	}
	return "v" + strconv.FormatInt(number, 10)
}

func (a *app) appRemoveCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "rm APP", Short: "End an application; for seven days it can be brought back", Args: exactArgs("the APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, args[0])
			if err != nil {
				return err
			}
			if _, err := t.cluster.App(cmd.Context(), t.key); err != nil {
				return err
			}
			a.announce(t, t.key.Name)
			if err := a.confirm(fmt.Sprintf("Remove %s in project %s", t.key.Name, t.key.Namespace)); err != nil {
				return err
			}
			now := time.Now().UTC()
			if _, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
				if one.Annotations[v1alpha1.AnnotationRemoved] != "" {
					return fmt.Errorf("%s is removed already", one.Name)
				}
				if one.Annotations == nil {
					one.Annotations = map[string]string{}
				}
				one.Annotations[v1alpha1.AnnotationRemoved] = now.Format(time.RFC3339)
				return nil
			}); err != nil {
				return err
			}
			return a.printf("%s is removed; until %s it comes back by: gantry app undo %s\n", t.key.Name, now.Add(keptRemoved).Format("2 January 15:04 MST"), t.key.Name)
		},
	})
}

func (a *app) appUndoCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "undo APP", Short: "Bring a removed application back", Args: exactArgs("the APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, args[0])
			if err != nil {
				return err
			}
			a.announce(t, t.key.Name)
			if _, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
				if one.Annotations[v1alpha1.AnnotationRemoved] == "" {
					return fmt.Errorf("%s is not removed", one.Name)
				}
				delete(one.Annotations, v1alpha1.AnnotationRemoved)
				return nil
			}); err != nil {
				return err
			}
			return a.printf("%s is back\n", t.key.Name)
		},
	})
}

func (a *app) openCommand() *cobra.Command {
	f := &appFlags{}
	forward, port := false, 0
	cmd := f.register(&cobra.Command{
		Use: "open [APP]", Short: "Print the application's address, and open it in a browser", Args: atMostOne("APP"),
		Long: "Print the application's address, and open it in a browser. With --forward a port of this machine leads to it until the command\n" +
			"is interrupted, whether or not it has an address.",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			one, err := t.cluster.App(cmd.Context(), t.key)
			if err != nil {
				return err
			}
			if forward {
				return a.forwardApp(cmd.Context(), t, one, port)
			}
			if why := unrouted(one); why != "" {
				return fmt.Errorf("%s has no address: %s\n→ gantry open --forward leads a port of this machine to it", one.Name, why)
			}
			if len(one.Status.URLs) == 0 {
				return fmt.Errorf("%s has no address yet: %s", one.Name, cmp.Or(one.Status.Message, "it was not released"))
			}
			if a.env.IsTerminal && !a.json {
				opener := map[string]string{"darwin": "open", "windows": "explorer"}[runtime.GOOS]
				if path, err := exec.LookPath(cmp.Or(opener, "xdg-open")); err == nil {
					_ = exec.CommandContext(cmd.Context(), path, one.Status.URLs[0]).Start() // the address is printed all the same
				}
			}
			if a.json {
				return a.printJSON(one.Status.URLs)
			}
			return a.printf("%s\n", one.Status.URLs[0])
		},
	})
	cmd.Flags().BoolVar(&forward, "forward", false, "lead a port of this machine to the application until interrupted")
	cmd.Flags().IntVar(&port, "port", 0, "with --forward: this port (default: a free one)")
	return cmd
}

// podRow is one container of an application in "ps".
type podRow struct {
	Pod      string `json:"pod"`
	Process  string `json:"process"`
	Release  string `json:"release"`
	State    string `json:"state"`
	Restarts int32  `json:"restarts"`
	Node     string `json:"node"`
	Age      string `json:"age"`
}

func (a *app) psCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "ps [APP]", Short: "List what runs of an application", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			if _, err := t.cluster.App(cmd.Context(), t.key); err != nil {
				return err
			}
			pods, err := t.pods(cmd.Context(), "")
			if err != nil {
				return err
			}
			rows, docs := [][]string{{"POD", "PROCESS", "RELEASE", "STATE", "RESTARTS", "NODE", "AGE"}}, []podRow{}
			for i := range pods {
				row := podRowOf(&pods[i], time.Now())
				docs = append(docs, row)
				rows = append(rows, []string{row.Pod, row.Process, row.Release, row.State, strconv.Itoa(int(row.Restarts)), row.Node, row.Age})
			}
			if a.json {
				return a.printJSON(docs)
			}
			return a.printTable(rows)
		},
	})
}

// pods are an application's, of one process or all, in order of process and age.
func (t *appTarget) pods(ctx context.Context, process string) ([]corev1.Pod, error) {
	labels := client.MatchingLabels{v1alpha1.LabelApp: t.key.Name}
	if process != "" {
		labels[v1alpha1.LabelProcess] = process
	}
	var list corev1.PodList
	if err := t.cluster.Client.List(ctx, &list, client.InNamespace(t.key.Namespace), labels); err != nil {
		return nil, deploy.Reached("list the pods", err)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Labels[v1alpha1.LabelProcess], b.Labels[v1alpha1.LabelProcess]),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return list.Items, nil
}

func podRowOf(pod *corev1.Pod, now time.Time) podRow {
	row := podRow{
		Pod: pod.Name, Process: cmp.Or(pod.Labels[v1alpha1.LabelProcess], pod.Labels[v1alpha1.LabelAddon], "-"), Node: cmp.Or(pod.Spec.NodeName, "-"),
		Release: "-", State: stateOf(pod), Age: age(now.Sub(pod.CreationTimestamp.Time)),
	}
	if release := pod.Labels[v1alpha1.LabelRelease]; release != "" {
		row.Release = "v" + release
	}
	for _, status := range pod.Status.ContainerStatuses {
		row.Restarts += status.RestartCount
	}
	return row
}

// stateOf is a word for how a pod is.
func stateOf(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "stopping"
	}
	ready := false
	for _, status := range pod.Status.ContainerStatuses {
		switch {
		case status.State.Waiting != nil && status.State.Waiting.Reason != "" && status.State.Waiting.Reason != "ContainerCreating":
			return status.State.Waiting.Reason
		case status.State.Terminated != nil && status.State.Terminated.ExitCode != 0:
			return fmt.Sprintf("ended with %d", status.State.Terminated.ExitCode)
		}
		ready = status.Ready
	}
	switch {
	case pod.Status.Phase == corev1.PodRunning && ready:
		return "running"
	case pod.Status.Phase == corev1.PodRunning:
		return "starting"
	case pod.Status.Phase == corev1.PodSucceeded:
		return "done"
	case pod.Status.Phase == corev1.PodPending && pod.Spec.NodeName == "":
		return "waiting for a node"
	}
	return strings.ToLower(string(pod.Status.Phase))
}

func (a *app) restartCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "restart [APP]", Short: "Start every process anew, one after the other", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			a.announce(t, t.key.Name)
			if _, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerScale, func(one *v1alpha1.App) error {
				one.Spec.Restarts++
				return nil
			}); err != nil {
				return err
			}
			return a.printf("%s restarts; see \"gantry ps %s\"\n", t.key.Name, t.key.Name)
		},
	})
}

const scaleLong = `Say how many of a process run: web=3, or web=1-5 for a range. It acts at once and makes no release.

The next deploy restores what gantry.yaml says.`

func (a *app) scaleCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "scale PROCESS=N...", Short: "Say how many of a process run", Long: scaleLong,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("say how many of which process: gantry scale web=3")
			}
			wanted := map[string]v1alpha1.Scale{}
			for _, arg := range args {
				name, scale, err := parseScale(arg)
				if err != nil {
					return err
				}
				wanted[name] = scale
			}
			t, err := a.target(cmd, f, "")
			if err != nil {
				return err
			}
			a.announce(t, t.key.Name)
			one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerScale, func(one *v1alpha1.App) error { return applyScale(one, wanted) })
			if err != nil {
				return err
			}
			if one.Spec.Source != nil && one.Spec.Source.File != "" {
				a.warn("the next deploy restores what %s says", one.Spec.Source.File)
			}
			for _, name := range sortedKeys(wanted) {
				if err := a.printf("%s: %s\n", name, scaleText(one.Spec.Processes[name].Scale)); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

func parseScale(arg string) (string, v1alpha1.Scale, error) {
	name, count, found := strings.Cut(arg, "=")
	least, most, isRange := strings.Cut(count, "-")
	low, err := strconv.ParseInt(least, 10, 32)
	high := low
	if isRange && err == nil {
		high, err = strconv.ParseInt(most, 10, 32)
	}
	if !found || name == "" || err != nil || low < 0 || high < low || high > 1000 || (isRange && high == 0) {
		return "", v1alpha1.Scale{}, usage("%q is no PROCESS=N, such as web=3 or web=1-5, with numbers from 0 to 1000", arg)
	}
	scale := v1alpha1.Scale{Min: new(int32(low))}
	if isRange {
		scale.Max = new(int32(high))
	}
	return name, scale, nil
}

// applyScale changes the numbers and keeps what else a scale says.
func applyScale(one *v1alpha1.App, wanted map[string]v1alpha1.Scale) error {
	if len(one.Spec.Processes) == 0 {
		one.Spec.Processes = map[string]v1alpha1.Process{v1alpha1.WebProcess: {}}
	}
	for name, scale := range wanted {
		process, known := one.Spec.Processes[name]
		if !known {
			names := sortedKeys(one.Spec.Processes)
			return usage("%s", suggest(fmt.Sprintf("no process %q in %s", name, one.Name), name, names, "there is "+strings.Join(names, ", ")))
		}
		if process.Schedule != "" {
			return usage("%s runs by a schedule, so it cannot be scaled", name)
		}
		next := process.Scale.DeepCopy()
		if next == nil {
			next = &v1alpha1.Scale{}
		}
		next.Min, next.Max = scale.Min, scale.Max
		process.Scale = next
		one.Spec.Processes[name] = process
	}
	return nil
}

func scaleText(scale *v1alpha1.Scale) string {
	if scale == nil || scale.Min == nil {
		return "1"
	}
	if scale.Max != nil && *scale.Max != *scale.Min {
		return fmt.Sprintf("%d to %d", *scale.Min, *scale.Max)
	}
	return strconv.Itoa(int(*scale.Min))
}

// appStatus prints one application.
func (a *app) appStatus(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(one)
	}
	status := one.Status
	rows := [][]string{{"app", one.Namespace + "/" + one.Name, strings.ToLower(phaseOf(one)), status.Message}, {"release", versionText(status.Release), imageText(one.Spec.Image)}}
	if status.Latest > status.Release {
		rows = append(rows, []string{"newest", versionText(status.Latest), "see: gantry release show " + versionText(status.Latest) + " -a " + one.Name})
	}
	for _, url := range status.URLs {
		rows = append(rows, []string{"url", url})
	}
	for _, process := range sortedKeys(status.Processes) {
		p := status.Processes[process]
		rows = append(rows, []string{"process", process, fmt.Sprintf("%d of %d ready", p.Ready, p.Desired), portText(p.Port)})
	}
	for _, addon := range sortedKeys(one.Spec.Addons) {
		s := status.Addons[addon]
		rows = append(rows, []string{"addon", addon, one.Spec.Addons[addon].Type, readyText(s.Ready), s.Message})
	}
	for _, domain := range status.Domains {
		until := ""
		if domain.Expires != nil {
			until = "certificate until " + domain.Expires.UTC().Format("2 January 2006")
		}
		rows = append(rows, []string{"domain", domain.Name, readyText(domain.Ready), cmp.Or(domain.Message, until)})
	}
	rows = append(rows, []string{"git", t.gitRemote(one)})
	if one.Spec.Expires != nil {
		rows = append(rows, []string{"preview", "ends " + one.Spec.Expires.UTC().Format("2 January 15:04 MST")})
	}
	return a.printTable(rows)
}

func imageText(image string) string {
	name, digest, found := strings.Cut(image, "@sha256:")
	if !found {
		return image
	}
	return name + "@" + digest[:min(12, len(digest))]
}

func portText(port int32) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf("port %d", port)
}

func readyText(ready bool) string {
	if ready {
		return "ready"
	}
	return "not ready"
}
