package deploy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
)

// check looks for what would make the deploy fail, before anything is sent. It returns the App as it is, nil if there is none.
func (e *Engine) check(ctx context.Context, req *Request) (*v1alpha1.App, error) {
	app, err := e.cluster.App(ctx, req.key())
	if err != nil && !IsNoApp(err) {
		return nil, err
	}
	if app != nil {
		if err := checkOrigin(req, app); err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(app.Spec.Config)) {
			if _, declared := req.Spec.Env[key]; declared {
				e.warn("%s is set by gantry env, too: the file goes before it; remove one: gantry env rm %s", key, key)
			}
		}
		if app.Annotations[v1alpha1.AnnotationRemoved] != "" {
			e.warn("%s was removed; this deploy brings it back", req.App)
		}
	}
	return app, e.checkSecrets(ctx, req)
}

// checkOrigin refuses another source for the same name.
func checkOrigin(req *Request, app *v1alpha1.App) error {
	if app.Spec.Source == nil || req.TakeOver || SameOrigin(app.Spec.Source.Origin, req.Spec.Source.Origin) {
		return nil
	}
	return failure(CodeCheck, "OtherOrigin", "%s in project %s comes from %s, and this is %s", req.App, req.Project, app.Spec.Source.Origin, req.Spec.Source.Origin).
		try("give this one another name: -a NAME, or name: in gantry.yaml", "or say that it is the same application: --take-over")
}

// SameOrigin compares origins. One repository has several addresses: with or without a user, .git, https or ssh.
func SameOrigin(a, b string) bool {
	return a == "" || b == "" || plainOrigin(a) == plainOrigin(b)
}

func plainOrigin(s string) string {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		rest = scheme
		if host, path, scp := strings.Cut(rest, ":"); scp && !strings.HasPrefix(path, "/") {
			rest = host + "/" + path // git@example.com:acme/shop.git
		}
	}
	repository, inside, _ := strings.Cut(rest, "//")
	if host, path, ok := strings.Cut(repository, "/"); ok {
		if _, bare, user := strings.Cut(host, "@"); user {
			host = bare
		}
		repository = host + "/" + path
	}
	return strings.TrimSuffix(strings.TrimSuffix(repository, "/"), ".git") + "//" + inside
}

// checkSecrets refuses while a secret that is named is unset.
func (e *Engine) checkSecrets(ctx context.Context, req *Request) error {
	wanted := slices.Clone(req.Spec.Secrets)
	if req.Spec.Build != nil {
		wanted = append(wanted, req.Spec.Build.Secrets...)
		if git := req.Spec.Build.Git; git != nil && git.Secret != "" {
			wanted = append(wanted, git.Secret)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	slices.Sort(wanted)
	set, err := e.cluster.SecretKeys(ctx, req.key())
	if apierrors.IsForbidden(err) {
		return nil // who may not see names of secrets may deploy all the same: the release says what is missing
	}
	if err != nil {
		return Reached("look whether the secrets are set", err)
	}
	missing := slices.DeleteFunc(slices.Compact(wanted), func(name string) bool { return slices.Contains(set, name) })
	if len(missing) == 0 {
		return nil
	}
	out := failure(CodeCheck, v1alpha1.ReasonSecretMissing, "%s of %s: not set", plural(len(missing), "secret")+" "+strings.Join(missing, ", "), req.App)
	for _, name := range missing {
		out = out.try(fmt.Sprintf("gantry secret set %s -a %s -p %s < FILE", name, req.App, req.Project))
	}
	return out
}

func plural(n int, word string) string {
	if n == 1 {
		return "the " + word
	}
	return "the " + word + "s"
}

// SecretKeys are the names of the secrets that an application has, sorted.
func (c *Cluster) SecretKeys(ctx context.Context, key types.NamespacedName) ([]string, error) {
	var secret corev1.Secret
	err := c.Client.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: v1alpha1.SecretName(key.Name)}, &secret)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return slices.Sorted(maps.Keys(secret.Data)), err
}
