package serviceaccount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// TokensOptions tunes a Tokens. Token is required.
type TokensOptions struct {
	RootCA []byte // PEM bundle that goes into the Secrets; empty: none does
	// Token makes the token that belongs into a Secret of an account.
	Token func(ctx context.Context, account *corev1.ServiceAccount, secret *corev1.Secret) (string, error)
	Log   *slog.Logger // default: discard
}

// Tokens fills Secrets of type kubernetes.io/service-account-token and removes those whose account is gone.
type Tokens struct {
	client    client.Client
	informers controller.Informers
	opts      TokensOptions
	loop      *controller.Loop
}

// Keys of the loop that are no Secrets. Neither sign is part of a name.
const (
	accountPrefix = "account/" // an account that was deleted: its Secrets go
	referenceSign = ":"        // account:secret, after that Secret was deleted: the account's reference goes
)

// NewTokens checks opts and returns a controller that has started nothing; call Run.
func NewTokens(c client.Client, informers controller.Informers, opts TokensOptions) (*Tokens, error) {
	if opts.Token == nil {
		return nil, errors.New("serviceaccount: TokensOptions.Token is missing")
	}
	tc := &Tokens{client: c, informers: informers, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "serviceaccount-token", Workers: 1, Log: opts.Log, Reconcile: tc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Secret{}, func(old, current client.Object) {
		switch secret, _ := current.(*corev1.Secret); {
		case secret != nil && holdsToken(secret):
			loop.Add(controller.KeyOf(secret))
		case secret == nil:
			if gone, ok := old.(*corev1.Secret); ok && holdsToken(gone) {
				loop.Add(controller.Key{Namespace: gone.Namespace, Name: gone.Annotations[corev1.ServiceAccountNameKey] + referenceSign + gone.Name})
			}
		}
	})
	loop.Watch(&corev1.ServiceAccount{}, func(old, current client.Object) {
		if current == nil {
			loop.Add(controller.Key{Namespace: old.GetNamespace(), Name: accountPrefix + old.GetName()})
		}
	})
	tc.loop = loop
	return tc, nil
}

// Run reconciles until ctx ends.
func (tc *Tokens) Run(ctx context.Context) error { return tc.loop.Run(ctx, tc.informers) }

// holdsToken reports whether secret is for a token of an account.
func holdsToken(secret *corev1.Secret) bool {
	return secret.Type == corev1.SecretTypeServiceAccountToken && secret.Annotations[corev1.ServiceAccountNameKey] != ""
}

func (tc *Tokens) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	if name, found := strings.CutPrefix(key.Name, accountPrefix); found {
		return 0, tc.secretsOf(ctx, key.Namespace, name)
	}
	if account, secret, found := strings.Cut(key.Name, referenceSign); found {
		return 0, tc.forget(ctx, key.Namespace, account, secret)
	}
	var secret corev1.Secret
	if err := tc.client.Get(ctx, key, &secret); err != nil || !holdsToken(&secret) || secret.DeletionTimestamp != nil {
		return 0, client.IgnoreNotFound(err)
	}
	account, err := tc.accountOf(ctx, &secret)
	if err != nil {
		return 0, err
	}
	if account == nil {
		err := tc.client.Delete(ctx, &secret, client.Preconditions{UID: &secret.UID})
		if err = client.IgnoreNotFound(err); err != nil && !apierrors.IsConflict(err) {
			return 0, fmt.Errorf("removing the token of a service account that is gone: %w", err)
		}
		return 0, nil
	}
	return 0, tc.fill(ctx, account, &secret)
}

// accountOf is the account whose token secret holds, nil if it is gone.
func (tc *Tokens) accountOf(ctx context.Context, secret *corev1.Secret) (*corev1.ServiceAccount, error) {
	var account corev1.ServiceAccount
	key := client.ObjectKey{Namespace: secret.Namespace, Name: secret.Annotations[corev1.ServiceAccountNameKey]}
	if err := tc.client.Get(ctx, key, &account); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if uid := secret.Annotations[corev1.ServiceAccountUIDKey]; uid != "" && uid != string(account.UID) {
		return nil, nil
	}
	return &account, nil
}

// fill writes what secret lacks.
func (tc *Tokens) fill(ctx context.Context, account *corev1.ServiceAccount, secret *corev1.Secret) error {
	needsCA := len(tc.opts.RootCA) > 0 && !bytes.Equal(secret.Data[corev1.ServiceAccountRootCAKey], tc.opts.RootCA)
	needsToken, needsNamespace := len(secret.Data[corev1.ServiceAccountTokenKey]) == 0, len(secret.Data[corev1.ServiceAccountNamespaceKey]) == 0
	if !needsCA && !needsToken && !needsNamespace {
		return nil
	}
	next := secret.DeepCopy()
	if next.Data == nil {
		next.Data = map[string][]byte{}
	}
	if needsCA {
		next.Data[corev1.ServiceAccountRootCAKey] = tc.opts.RootCA
	}
	if needsNamespace {
		next.Data[corev1.ServiceAccountNamespaceKey] = []byte(secret.Namespace)
	}
	if needsToken {
		token, err := tc.opts.Token(ctx, account, secret)
		if err != nil {
			return fmt.Errorf("making a service account's token: %w", err)
		}
		next.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	next.Annotations[corev1.ServiceAccountNameKey] = account.Name
	next.Annotations[corev1.ServiceAccountUIDKey] = string(account.UID)
	if err := client.IgnoreNotFound(tc.client.Update(ctx, next)); err != nil {
		return fmt.Errorf("writing a service account's token: %w", err)
	}
	return nil
}

// secretsOf looks again at the Secrets of an account that was deleted.
func (tc *Tokens) secretsOf(ctx context.Context, namespace, account string) error {
	var list corev1.SecretList
	if err := tc.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return fmt.Errorf("looking for the tokens of a service account: %w", err)
	}
	for i := range list.Items {
		if secret := &list.Items[i]; holdsToken(secret) && secret.Annotations[corev1.ServiceAccountNameKey] == account {
			tc.loop.Add(controller.KeyOf(secret))
		}
	}
	return nil
}

// forget takes the name of a deleted Secret out of its account.
func (tc *Tokens) forget(ctx context.Context, namespace, account, secret string) error {
	var have corev1.ServiceAccount
	if err := tc.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: account}, &have); err != nil {
		return client.IgnoreNotFound(err)
	}
	named := func(ref corev1.ObjectReference) bool { return ref.Name == secret }
	if !slices.ContainsFunc(have.Secrets, named) {
		return nil
	}
	if err := tc.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: secret}, &corev1.Secret{}); !apierrors.IsNotFound(err) {
		return err // there is one of that name again
	}
	next := have.DeepCopy()
	next.Secrets = slices.DeleteFunc(next.Secrets, named)
	if err := client.IgnoreNotFound(tc.client.Update(ctx, next)); err != nil {
		return fmt.Errorf("taking a token out of its service account: %w", err)
	}
	return nil
}
