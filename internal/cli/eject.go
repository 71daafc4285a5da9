package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/eject"
)

const ejectLong = `Write what an application consists of as plain Kubernetes objects, which kubectl applies to any cluster: the release that serves, with
its addons. Nothing is changed where it runs now.

Values of secrets are not written: the objects refer to Secrets, and the comments at the beginning say which, with which keys.`

func (a *app) ejectCommand() *cobra.Command {
	f := &appFlags{}
	var output, image string
	cmd := f.register(&cobra.Command{
		Use: "eject [APP]", Short: "Write the application as plain Kubernetes YAML", Long: ejectLong, Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			in, err := t.ejectInput(cmd.Context())
			if err != nil {
				return err
			}
			in.Image = image
			out, err := eject.Render(in)
			if err != nil {
				return err
			}
			return a.writeEjected(in, out, output)
		},
	})
	cmd.Flags().StringVarP(&output, "output", "o", "-", "a folder, which gets a file an object, a file NAME.yaml, or - for standard output")
	cmd.Flags().StringVar(&image, "image", "", "name this image instead of the release's")
	return cmd
}

// ejectInput reads what is written.
func (t *appTarget) ejectInput(ctx context.Context) (eject.Input, error) {
	in := eject.Input{}
	var err error
	if in.App, err = t.cluster.App(ctx, t.key); err != nil {
		return in, err
	}
	releases, err := t.cluster.Releases(ctx, t.key)
	if err != nil {
		return in, err
	}
	for i := range releases {
		if releases[i].Spec.Number == in.App.Status.Release {
			in.Release = &releases[i]
		}
	}
	if in.Release == nil && in.App.Spec.Image == "" {
		return in, fmt.Errorf("%s was not released yet, so there is nothing to write", t.key.Name)
	}
	var claims corev1.PersistentVolumeClaimList
	if err := t.cluster.Client.List(ctx, &claims, client.InNamespace(t.key.Namespace), client.MatchingLabels{v1alpha1.LabelApp: t.key.Name}); err != nil {
		return in, deploy.Reached("list the volumes", err)
	}
	in.Claims = claims.Items
	var settings corev1.ConfigMap
	err = t.cluster.Client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: v1alpha1.PlatformConfig}, &settings)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) { // who may not see them gets the defaults
		return in, deploy.Reached("read the platform's settings", err)
	}
	in.Settings = settings.Data
	return in, nil
}

// writeEjected writes objects and notes to standard output, a file or a folder.
func (a *app) writeEjected(in eject.Input, out eject.Output, output string) error {
	title := fmt.Sprintf("%s of project %s", in.App.Name, in.App.Namespace)
	if in.Release != nil {
		title += fmt.Sprintf(", release v%d", in.Release.Spec.Number)
	}
	title += ", as plain Kubernetes objects. Apply them with: kubectl apply -f "
	write := func(path string) func(io.Writer) error {
		return func(w io.Writer) error { return ejectTo(w, append([]string{title + path}, out.Notes...), out.Objects) }
	}
	switch {
	case a.json:
		return a.printJSON(out)
	case output == "-":
		return write("FILE")(a.env.Stdout)
	case strings.HasSuffix(output, ".yaml"), strings.HasSuffix(output, ".yml"):
		if err := writeWhole(output, write(output)); err != nil {
			return err
		}
	default:
		if err := ejectFolder(output, append([]string{title + output}, out.Notes...), out.Objects); err != nil {
			return err
		}
	}
	for _, note := range out.Notes {
		a.warn("%s", note)
	}
	return a.printf("%s\n", output)
}

// ejectTo writes one document with everything.
func ejectTo(w io.Writer, comments []string, objects []*unstructured.Unstructured) error {
	var text bytes.Buffer
	for _, comment := range comments {
		fmt.Fprintf(&text, "# %s\n", comment)
	}
	for _, object := range objects {
		encoded, err := yaml.Marshal(object.Object)
		if err != nil {
			return fmt.Errorf("encode the %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		fmt.Fprintf(&text, "---\n%s", encoded)
	}
	_, err := w.Write(text.Bytes())
	return err
}

// ejectFolder writes a file an object. What is there already is not mixed with it.
func ejectFolder(folder string, comments []string, objects []*unstructured.Unstructured) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return usage("write to %s: %w", folder, err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return usage("write to %s: %w", folder, err)
	}
	if len(entries) > 0 {
		return usage("%s is not empty; name another folder", folder)
	}
	notes := []byte(strings.Join(comments, "\n\n") + "\n")
	if err := os.WriteFile(filepath.Join(folder, "NOTES.txt"), notes, 0o644); err != nil {
		return fmt.Errorf("write to %s: %w", folder, err)
	}
	for i, object := range objects {
		name := fmt.Sprintf("%02d-%s-%s.yaml", i+1, strings.ToLower(object.GetKind()), object.GetName())
		err := writeWhole(filepath.Join(folder, name), func(w io.Writer) error { return ejectTo(w, nil, []*unstructured.Unstructured{object}) })
		if err != nil {
			return err
		}
	}
	return nil
}
