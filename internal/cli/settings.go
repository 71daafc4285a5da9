package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// maxSecret bounds a secret: an object of the API holds a megabyte.
const maxSecret = 512 << 10

func (a *app) envCommand() *cobra.Command {
	ls, set, rm := &appFlags{}, &appFlags{}, &appFlags{}
	return parent("env", "List, set and remove environment variables",
		ls.register(&cobra.Command{
			Use: "ls [APP]", Short: "List the environment, and where each comes from", Args: atMostOne("APP"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.envList(cmd, ls, first(args)) },
		}),
		set.registerWait(&cobra.Command{
			Use: "set KEY=VALUE...", Short: "Set variables, which makes a release",
			RunE: func(cmd *cobra.Command, args []string) error {
				values := map[string]string{}
				for _, arg := range args {
					key, value, found := strings.Cut(arg, "=")
					if !found || !isVariable(key) {
						return usage("%q is no KEY=VALUE, such as LOG_LEVEL=info", arg)
					}
					values[key] = value
				}
				return a.envChange(cmd, set, values, nil)
			},
		}),
		rm.registerWait(&cobra.Command{
			Use: "rm KEY...", Short: "Remove variables, which makes a release",
			RunE: func(cmd *cobra.Command, args []string) error { return a.envChange(cmd, rm, nil, args) },
		}))
}

func isVariable(key string) bool {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(key)
}

// envRow is one variable.
type envRow struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
	From  string `json:"from"`
}

func (a *app) envList(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	docs := []envRow{}
	for _, key := range sortedKeys(one.Spec.Env) {
		docs = append(docs, envRow{key, one.Spec.Env[key], declaredAt(one, key)})
	}
	for _, key := range sortedKeys(one.Spec.Config) {
		if _, twice := one.Spec.Env[key]; !twice {
			docs = append(docs, envRow{key, one.Spec.Config[key], "env set"})
		}
	}
	for _, key := range one.Spec.Secrets {
		docs = append(docs, envRow{Key: key, From: "secret"})
	}
	slices.SortStableFunc(docs, func(x, y envRow) int { return strings.Compare(x.Key, y.Key) })
	if a.json {
		return a.printJSON(docs)
	}
	rows := [][]string{{"KEY", "VALUE", "FROM"}}
	for _, row := range docs {
		rows = append(rows, []string{row.Key, row.Value, row.From})
	}
	return a.printTable(rows)
}

// declaredAt is the line of the file that declares a variable.
func declaredAt(one *v1alpha1.App, key string) string {
	src := one.Spec.Source
	switch {
	case src == nil || src.File == "":
		return "deploy"
	case src.Lines[key] == 0:
		return src.File
	}
	return fmt.Sprintf("%s:%d", src.File, src.Lines[key])
}

func (a *app) envChange(cmd *cobra.Command, f *appFlags, set map[string]string, remove []string) error {
	if len(set) == 0 && len(remove) == 0 {
		return usage("say which: %s", cmd.UseLine())
	}
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	keys := append(sortedKeys(set), remove...)
	a.announce(t, t.key.Name)
	changed := false
	one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerEnv, func(one *v1alpha1.App) error {
		changed = false
		for _, key := range keys {
			if _, declared := one.Spec.Env[key]; declared {
				return usage("%s is declared in %s: change it there, and deploy", key, declaredAt(one, key))
			}
			if slices.Contains(one.Spec.Secrets, key) {
				return usage("%s is a secret: gantry secret set %s", key, key)
			}
		}
		if one.Spec.Config == nil {
			one.Spec.Config = map[string]string{}
		}
		for key, value := range set {
			old, known := one.Spec.Config[key]
			changed = changed || !known || old != value
			one.Spec.Config[key] = value
		}
		for _, key := range remove {
			if _, known := one.Spec.Config[key]; !known {
				return usage("%s", suggest(fmt.Sprintf("%s has no variable %s", one.Name, key), key, sortedKeys(one.Spec.Config), "see \"gantry env ls\""))
			}
			delete(one.Spec.Config, key)
			changed = true
		}
		if changed {
			deploy.Touch(one, "env "+strings.Join(keys, ", "))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !changed {
		return a.printf("nothing changed\n")
	}
	return a.followChange(cmd.Context(), t, f, one)
}

func (a *app) secretCommand() *cobra.Command {
	ls, set, rm := &appFlags{}, &appFlags{}, &appFlags{}
	var file string
	setCommand := set.register(&cobra.Command{
		Use: "set NAME", Short: "Set a secret from standard input or a file; before the first deploy, too", Args: exactArgs("the NAME"),
		Long: "Set a secret from standard input or a file. One newline at the end of standard input is not part of it.\n" +
			"A release that names the secret is made anew with it. It may be set before the application is there.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.secretSet(cmd, set, args[0], file) },
	})
	setCommand.Flags().StringVar(&file, "file", "", "read the secret from this file, as it is")
	return parent("secret", "List, set and remove secrets",
		ls.register(&cobra.Command{
			Use: "ls [APP]", Short: "List the names of secrets", Args: atMostOne("APP"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.secretList(cmd, ls, first(args)) },
		}),
		setCommand,
		rm.register(&cobra.Command{
			Use: "rm NAME", Short: "Remove a secret", Args: exactArgs("the NAME"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.secretRemove(cmd, rm, args[0]) },
		}))
}

func (a *app) secretList(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	set, err := t.cluster.SecretKeys(cmd.Context(), t.key)
	if err != nil {
		return deploy.Reached("list the secrets", err)
	}
	states := map[string]string{}
	for _, key := range set {
		states[key] = "set, used by nothing"
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil && !deploy.IsNoApp(err) {
		return err
	}
	if one != nil {
		for _, key := range one.Spec.Secrets {
			if states[key] = "set"; !slices.Contains(set, key) {
				states[key] = "missing"
			}
		}
	}
	if a.json {
		return a.printJSON(states)
	}
	rows := [][]string{{"SECRET", "STATE"}}
	for _, key := range sortedKeys(states) {
		rows = append(rows, []string{key, states[key]})
	}
	return a.printTable(rows)
}

// readSecret reads a secret from a file, standard input or, hidden, from the terminal. Never from an argument: those are seen by all.
func (a *app) readSecret(name, file string) ([]byte, error) {
	var value []byte
	var err error
	stdin, isFile := a.env.Stdin.(*os.File)
	switch {
	case file != "":
		value, err = os.ReadFile(file)
	case a.env.IsTerminal && isFile && term.IsTerminal(int(stdin.Fd())):
		_, _ = fmt.Fprintf(a.env.Stderr, "%s (not shown): ", name)
		value, err = term.ReadPassword(int(stdin.Fd()))
		_, _ = fmt.Fprintln(a.env.Stderr)
	default:
		value, err = io.ReadAll(io.LimitReader(a.env.Stdin, maxSecret+1))
		value = []byte(strings.TrimSuffix(strings.TrimSuffix(string(value), "\n"), "\r"))
	}
	switch {
	case err != nil:
		return nil, usage("read the secret: %w", err)
	case len(value) == 0:
		return nil, usage("the secret is empty: give it on standard input, as in gantry secret set %s < FILE", name)
	case len(value) > maxSecret:
		return nil, usage("the secret has more than %d bytes", maxSecret)
	}
	return value, nil
}

func (a *app) secretSet(cmd *cobra.Command, f *appFlags, name, file string) error {
	if key, _, found := strings.Cut(name, "="); found {
		return usage("a secret is not an argument, which all processes of this machine may see: gantry secret set %s < FILE", key)
	}
	if !isVariable(name) {
		return usage("%q is not the name of a variable, such as STRIPE_KEY", name)
	}
	value, err := a.readSecret(name, file)
	if err != nil {
		return err
	}
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	a.announce(t, t.key.Name)
	if err := t.setSecret(cmd.Context(), name, value); err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	switch {
	case deploy.IsNoApp(err):
		return a.printf("%s of %s is set; the first deploy finds it\n", name, t.key.Name)
	case err != nil:
		return err
	case !slices.Contains(one.Spec.Secrets, name):
		return a.printf("%s of %s is set; name it in gantry.yaml under secrets, and it is a variable\n", name, t.key.Name)
	}
	return a.printf("%s of %s is set; a release with it is made\n", name, t.key.Name)
}

// setSecret writes one key of the application's Secret, or removes it if value is nil. What others write meanwhile stays.
func (t *appTarget) setSecret(ctx context.Context, name string, value []byte) error {
	key := client.ObjectKey{Namespace: t.key.Namespace, Name: v1alpha1.SecretName(t.key.Name)}
	var secret corev1.Secret
	err := t.cluster.Client.Get(ctx, key, &secret)
	if apierrors.IsNotFound(err) && value != nil {
		secret = corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{v1alpha1.LabelApp: t.key.Name}},
			Data:       map[string][]byte{name: value},
		}
		err = t.cluster.Client.Create(ctx, &secret, client.FieldOwner(deploy.ManagerEnv))
		if apierrors.IsNotFound(err) {
			return usage("there is no project %s; make it with \"gantry project create %s\"", key.Namespace, key.Namespace)
		}
		return deploy.Reached("set the secret", err)
	}
	if err != nil {
		return deploy.Reached("read the secrets", err)
	}
	before := secret.DeepCopy()
	if value == nil {
		delete(secret.Data, name)
	} else if secret.Data == nil {
		secret.Data = map[string][]byte{name: value}
	} else {
		secret.Data[name] = value
	}
	return deploy.Reached("set the secret", t.cluster.Client.Patch(ctx, &secret, client.MergeFrom(before), client.FieldOwner(deploy.ManagerEnv)))
}

func (a *app) secretRemove(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	set, err := t.cluster.SecretKeys(cmd.Context(), t.key)
	if err != nil {
		return deploy.Reached("list the secrets", err)
	}
	if !slices.Contains(set, name) {
		return usage("%s", suggest(fmt.Sprintf("%s has no secret %s", t.key.Name, name), name, set, "see \"gantry secret ls\""))
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil && !deploy.IsNoApp(err) {
		return err
	}
	if one != nil && slices.Contains(one.Spec.Secrets, name) {
		return usage("%s is named in %s: remove it there and deploy, then here", name, declaredFile(one))
	}
	a.announce(t, t.key.Name)
	if err := a.confirm(fmt.Sprintf("Remove the secret %s of %s", name, t.key.Name)); err != nil {
		return err
	}
	if err := t.setSecret(cmd.Context(), name, nil); err != nil {
		return err
	}
	return a.printf("%s of %s is removed\n", name, t.key.Name)
}

func declaredFile(one *v1alpha1.App) string {
	if one.Spec.Source == nil || one.Spec.Source.File == "" {
		return "the application's spec"
	}
	return one.Spec.Source.File
}

func (a *app) domainCommand() *cobra.Command {
	ls, set, rm := &appFlags{}, &appFlags{}, &appFlags{}
	var redirect string
	setCommand := set.register(&cobra.Command{
		Use: "set NAME", Short: "Serve the application at a host name, too", Args: exactArgs("the host NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.domainChange(cmd, set, func(one *v1alpha1.App) error {
				one.Spec.Domains = slices.DeleteFunc(one.Spec.Domains, func(d v1alpha1.Domain) bool { return d.Name == args[0] })
				one.Spec.Domains = append(one.Spec.Domains, v1alpha1.Domain{Name: args[0], Redirect: redirect})
				return nil
			}, args[0], redirect)
		},
	})
	setCommand.Flags().StringVar(&redirect, "redirect", "", "send requests to this host name instead")
	return parent("domain", "List, set and remove host names",
		ls.register(&cobra.Command{
			Use: "ls [APP]", Short: "List host names, and what keeps them from working", Args: atMostOne("APP"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.domainList(cmd, ls, first(args)) },
		}),
		setCommand,
		rm.register(&cobra.Command{
			Use: "rm NAME", Short: "Serve the application at a host name no more", Args: exactArgs("the host NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.domainChange(cmd, rm, func(one *v1alpha1.App) error {
					var names []string
					for _, d := range one.Spec.Domains {
						names = append(names, d.Name)
					}
					if !slices.Contains(names, args[0]) {
						return usage("%s", suggest(fmt.Sprintf("%s has no domain %s", one.Name, args[0]), args[0], names, "see \"gantry domain ls\""))
					}
					one.Spec.Domains = slices.DeleteFunc(one.Spec.Domains, func(d v1alpha1.Domain) bool { return d.Name == args[0] })
					return nil
				}, args[0], "")
			},
		}))
}

func (a *app) domainList(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(append([]v1alpha1.DomainStatus{}, one.Status.Domains...))
	}
	states := map[string]v1alpha1.DomainStatus{}
	for _, s := range one.Status.Domains {
		states[s.Name] = s
	}
	rows := [][]string{{"DOMAIN", "STATE", "REDIRECT", "MESSAGE"}}
	for _, d := range one.Spec.Domains {
		rows = append(rows, []string{d.Name, readyText(states[d.Name].Ready), d.Redirect, states[d.Name].Message})
	}
	return a.printTable(rows)
}

func (a *app) domainChange(cmd *cobra.Command, f *appFlags, change func(*v1alpha1.App) error, names ...string) error {
	for _, name := range names {
		if name == "" {
			continue
		}
		if err := appfile.CheckDomain(name); err != nil {
			return usage("%q %w", name, err)
		}
	}
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	a.announce(t, t.key.Name)
	one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, change)
	if err != nil {
		return err
	}
	if one.Spec.Source != nil && one.Spec.Source.File != "" {
		a.warn("if %s names domains, the next deploy restores those", one.Spec.Source.File)
	}
	return a.printf("%s; see \"gantry domain ls -a %s\"\n", cmd.Name()+" "+names[0], one.Name)
}

func (a *app) volumeCommand() *cobra.Command {
	ls, set, rm := &appFlags{}, &appFlags{}, &appFlags{}
	var size, process string
	setCommand := set.registerWait(&cobra.Command{
		Use: "set NAME=PATH", Short: "Mount a volume, made if need be, which makes a release", Args: exactArgs("NAME=PATH, such as uploads=/data,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, path, found := strings.Cut(args[0], "=")
			if !found || appfile.AppName(name) != name || !strings.HasPrefix(path, "/") {
				return usage("%q is no NAME=PATH, such as uploads=/data", args[0])
			}
			quantity, err := resource.ParseQuantity(size)
			if err != nil || quantity.Sign() <= 0 {
				return usage("--size %q is not a size such as 5Gi", size)
			}
			return a.volumeSet(cmd, set, process, path, v1alpha1.Volume{Name: name, Size: &quantity})
		},
	})
	setCommand.Flags().StringVar(&size, "size", "1Gi", "its size")
	setCommand.Flags().StringVar(&process, "process", v1alpha1.WebProcess, "the process that gets it")
	return parent("volume", "List, mount and remove volumes",
		ls.register(&cobra.Command{
			Use: "ls [APP]", Short: "List volumes", Args: atMostOne("APP"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.volumeList(cmd, ls, first(args)) },
		}),
		setCommand,
		rm.register(&cobra.Command{
			Use: "rm NAME", Short: "Remove a volume that nothing mounts, with all data", Args: exactArgs("the volume's NAME"),
			RunE: func(cmd *cobra.Command, args []string) error { return a.volumeRemove(cmd, rm, args[0]) },
		}))
}

func (a *app) volumeSet(cmd *cobra.Command, f *appFlags, process, path string, volume v1alpha1.Volume) error {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	a.announce(t, t.key.Name)
	one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
		if len(one.Spec.Processes) == 0 {
			one.Spec.Processes = map[string]v1alpha1.Process{v1alpha1.WebProcess: {}}
		}
		p, known := one.Spec.Processes[process]
		if !known {
			names := sortedKeys(one.Spec.Processes)
			return usage("%s", suggest(fmt.Sprintf("no process %q in %s", process, one.Name), process, names, "there is "+strings.Join(names, ", ")))
		}
		if p.Volumes == nil {
			p.Volumes = map[string]v1alpha1.Volume{}
		}
		p.Volumes[path] = volume
		one.Spec.Processes[process] = p
		deploy.Touch(one, "volume "+volume.Name)
		return nil
	})
	if err != nil {
		return err
	}
	if one.Spec.Source.File != "" {
		a.warn("write it into %s as well: the next deploy restores what that says", one.Spec.Source.File)
	}
	return a.followChange(cmd.Context(), t, f, one)
}

// mounts says where an application's volumes are mounted: "web /data".
func mounts(one *v1alpha1.App) map[string][]string {
	out := map[string][]string{}
	for _, process := range sortedKeys(one.Spec.Processes) {
		for _, path := range sortedKeys(one.Spec.Processes[process].Volumes) {
			name := one.Spec.Processes[process].Volumes[path].Name
			out[name] = append(out[name], process+" "+path)
		}
	}
	return out
}

func (a *app) volumeList(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	var claims corev1.PersistentVolumeClaimList
	if err := t.cluster.Client.List(cmd.Context(), &claims, client.InNamespace(t.key.Namespace), client.MatchingLabels{v1alpha1.LabelApp: one.Name}); err != nil {
		return deploy.Reached("list the volumes", err)
	}
	if a.json {
		return a.printJSON(append([]corev1.PersistentVolumeClaim{}, claims.Items...))
	}
	mounted := mounts(one)
	rows := [][]string{{"VOLUME", "SIZE", "STATE", "MOUNTED"}}
	for _, claim := range claims.Items {
		size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
		short := strings.TrimPrefix(claim.Name, one.Name+"-")
		rows = append(rows, []string{short, size.String(), strings.ToLower(string(claim.Status.Phase)), strings.Join(mounted[short], ", ")})
	}
	return a.printTable(rows)
}

func (a *app) volumeRemove(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	if used := mounts(one)[name]; len(used) > 0 {
		return usage("the volume %s is mounted (%s): remove it from the application first", name, strings.Join(used, ", "))
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: t.key.Namespace, Name: one.Name + "-" + name}}
	err = t.cluster.Client.Get(cmd.Context(), client.ObjectKeyFromObject(claim), claim)
	if apierrors.IsNotFound(err) || (err == nil && claim.Labels[v1alpha1.LabelApp] != one.Name) {
		return usage("%s has no volume %s; see \"gantry volume ls\"", one.Name, name)
	}
	if err != nil {
		return deploy.Reached("look at the volume", err)
	}
	a.announce(t, t.key.Name)
	if err := a.confirm(fmt.Sprintf("Remove the volume %s of %s with all data, for good", name, one.Name)); err != nil {
		return err
	}
	if err := t.cluster.Client.Delete(cmd.Context(), claim); err != nil {
		return deploy.Reached("remove the volume", err)
	}
	return a.printf("the volume %s of %s is removed\n", name, one.Name)
}
