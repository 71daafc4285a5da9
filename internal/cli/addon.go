package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon/pack"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

func (a *app) addonCommand() *cobra.Command {
	return parent("addon", "Databases and caches of an application",
		a.addonAddCommand(), a.addonListCommand(), a.addonRemoveCommand(), a.addonConnectCommand(), a.addonDumpCommand(), a.addonLoadCommand(),
		a.addonBackupCommand())
}

func (a *app) addonAddCommand() *cobra.Command {
	f, wanted := &appFlags{}, v1alpha1.Addon{Added: true}
	var name, size string
	cmd := f.registerWait(&cobra.Command{
		Use: "add TYPE", Short: "Give the application a " + strings.Join(pack.Names(), " or ") + ", which makes a release",
		Long: "Give the application an addon. Its address is in the environment: DATABASE_URL of postgres, REDIS_URL of redis, and NAME_URL always.\n" +
			"Data that an addon of the same name and type left behind is found again.",
		Args: exactArgs("the TYPE: " + strings.Join(pack.Names(), " or ") + ","),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := pack.Find(args[0])
			if err != nil {
				return usage("%s", suggest(err.Error(), args[0], pack.Names(), ""))
			}
			if _, err := p.Version(wanted.Version); err != nil {
				return usage("%v", err)
			}
			name, wanted.Type = cmp.Or(name, p.Addon), p.Name
			if appfile.AppName(name) != name {
				return usage("--name %q is no name such as db", name)
			}
			if size != "" {
				quantity, err := resource.ParseQuantity(size)
				if err != nil || quantity.Sign() <= 0 {
					return usage("--size %q is not a size such as 10Gi", size)
				}
				wanted.Size = &quantity
			}
			return a.addonAdd(cmd, f, name, wanted)
		},
	})
	cmd.Flags().StringVar(&name, "name", "", "its name in the application (default: db of postgres, cache of redis)")
	cmd.Flags().StringVar(&wanted.Version, "version", "", "its major version (default: the newest, or that of data that is there)")
	cmd.Flags().StringVar(&size, "size", "", "the size of its volume (default: 1Gi)")
	cmd.Flags().StringVar(&wanted.Backup, "backup", "", "when it is backed up: hourly, daily, weekly or a schedule such as \"0 3 * * *\"")
	return cmd
}

func (a *app) addonAdd(cmd *cobra.Command, f *appFlags, name string, wanted v1alpha1.Addon) error {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	a.announce(t, t.key.Name)
	one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
		if there, taken := one.Spec.Addons[name]; taken {
			return usage("%s has an addon %s (%s) already; say --name for another", one.Name, name, there.Type)
		}
		for other, addon := range one.Spec.Addons {
			if addon.Type == wanted.Type {
				a.warn("%s is a %s as well: the address of the new one is in %sURL", other, wanted.Type, pack.Prefix(name))
			}
		}
		if one.Spec.Addons == nil {
			one.Spec.Addons = map[string]v1alpha1.Addon{}
		}
		one.Spec.Addons[name] = wanted
		deploy.Touch(one, "addon "+name)
		return nil
	})
	if err != nil {
		return err
	}
	return a.followChange(cmd.Context(), t, f, one)
}

// addonRow is one addon in "addon ls".
type addonRow struct {
	Name       string       `json:"name"`
	Type       string       `json:"type"`
	Ready      bool         `json:"ready"`
	Backup     string       `json:"backup,omitempty"`
	LastBackup *metav1.Time `json:"lastBackup,omitempty"`
	Declared   string       `json:"declared"`
	Message    string       `json:"message,omitempty"`
}

func (a *app) addonListCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "ls [APP]", Short: "List the addons of an application", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			one, err := t.cluster.App(cmd.Context(), t.key)
			if err != nil {
				return err
			}
			rows, docs := [][]string{{"ADDON", "TYPE", "STATE", "BACKUP", "LAST BACKUP", "FROM", "MESSAGE"}}, []addonRow{}
			for _, name := range sortedKeys(one.Spec.Addons) {
				addon, status := one.Spec.Addons[name], one.Status.Addons[name]
				row := addonRow{Name: name, Type: addon.Type, Ready: status.Ready, Backup: addon.Backup, LastBackup: status.LastBackup, Declared: "command", Message: status.Message}
				if !addon.Added {
					row.Declared = declaredFile(one)
				}
				last := "-"
				if row.LastBackup != nil {
					last = age(time.Since(row.LastBackup.Time)) + " ago"
				}
				docs = append(docs, row)
				rows = append(rows, []string{name, row.Type, readyText(row.Ready), cmp.Or(row.Backup, "-"), last, row.Declared, row.Message})
			}
			if a.json {
				return a.printJSON(docs)
			}
			return a.printTable(rows)
		},
	})
}

func (a *app) addonRemoveCommand() *cobra.Command {
	f := &appFlags{}
	var deleteData bool
	cmd := f.registerWait(&cobra.Command{
		Use: "rm NAME", Short: "Take an addon away, which makes a release; its data stays unless asked",
		Long: "Take an addon away. It ends when a release without it serves. Its data and backups stay, and an addon of the same name and type finds\n" +
			"them again; --delete-data removes them for good, also later.",
		Args: exactArgs("the addon's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.addonRemove(cmd, f, args[0], deleteData) },
	})
	cmd.Flags().BoolVar(&deleteData, "delete-data", false, "remove its data and its backups as well, for good")
	return cmd
}

func (a *app) addonRemove(cmd *cobra.Command, f *appFlags, name string, deleteData bool) error {
	t, err := a.target(cmd, f, "")
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	one, err := t.cluster.App(ctx, t.key)
	if err != nil {
		return err
	}
	there, has := one.Spec.Addons[name]
	claims, err := t.addonClaims(ctx, name)
	switch {
	case err != nil:
		return err
	case !has && (!deleteData || len(claims) == 0):
		return a.noAddon(one, name)
	case has && !there.Added:
		return usage("%s declares the addon %s: remove it there and deploy; then \"gantry addon rm %s --delete-data\" removes its data", declaredFile(one), name, name)
	}
	a.announce(t, t.key.Name)
	question := fmt.Sprintf("Remove the addon %s of %s; its data stays", name, one.Name)
	if deleteData {
		question = fmt.Sprintf("Remove the addon %s of %s with all its data and backups, for good", name, one.Name)
	}
	if err := a.confirm(question); err != nil {
		return err
	}
	if has {
		one, err = t.cluster.ChangeApp(ctx, t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
			delete(one.Spec.Addons, name)
			deploy.Touch(one, "addon "+name+" removed")
			return nil
		})
		if err != nil {
			return err
		}
		if err := a.followChange(ctx, t, f, one); err != nil {
			return err
		}
	}
	if !deleteData {
		return nil
	}
	for _, claim := range claims {
		if err := t.cluster.Client.Delete(ctx, claim); err != nil && !apierrors.IsNotFound(err) {
			return deploy.Reached("remove the data", err)
		}
	}
	return a.printf("the data of %s is removed\n", name)
}

// addonClaims are the volumes of an addon, which may be gone itself.
func (t *appTarget) addonClaims(ctx context.Context, name string) (out []*corev1.PersistentVolumeClaim, err error) {
	for _, object := range []string{v1alpha1.ObjectName(t.key.Name, name), v1alpha1.BackupName(t.key.Name, name)} {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: t.key.Namespace, Name: object}}
		err := t.cluster.Client.Get(ctx, keyOf(claim), claim)
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, deploy.Reached("look at the volumes", err)
		}
		if err == nil && claim.Labels[v1alpha1.LabelApp] == t.key.Name && claim.Labels[v1alpha1.LabelAddon] == name {
			out = append(out, claim)
		}
	}
	return out, nil
}

// noAddon says which addons there are.
func (a *app) noAddon(one *v1alpha1.App, name string) error {
	names := sortedKeys(one.Spec.Addons)
	if len(names) == 0 {
		return usage("%s has no addon %s; see \"gantry addon add --help\"", one.Name, name)
	}
	return usage("%s", suggest(fmt.Sprintf("no addon %q in %s", name, one.Name), name, names, "there is "+strings.Join(names, ", ")))
}
