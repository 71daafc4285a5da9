package server

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/controller/bootstrap"
	"gantry.dev/gantry/internal/controller/certificates"
	"gantry.dev/gantry/internal/controller/serviceaccount"
)

// startAccessControllers runs what looks after tokens and certificates.
func (cp *term) startAccessControllers() error {
	log := cp.opts.Logger
	type made struct {
		name  string
		user  user.Info
		build func(c *client.Client, informers *client.Cache) (runner, error)
	}
	all := []made{
		{"service account tokens", controllersUser(), func(c *client.Client, i *client.Cache) (runner, error) {
			return serviceaccount.NewTokens(c, i, serviceaccount.TokensOptions{RootCA: cp.opts.RootCA, Token: cp.authn.LegacyToken, Log: log})
		}},
		{"token-cleaner", controllerUser("token-cleaner"), func(c *client.Client, i *client.Cache) (runner, error) {
			return bootstrap.NewCleaner(c, i, bootstrap.Options{Log: log})
		}},
		{"bootstrap-signer", controllerUser("bootstrap-signer"), func(c *client.Client, i *client.Cache) (runner, error) {
			return bootstrap.NewSigner(c, i, bootstrap.Options{Log: log})
		}},
	}
	if cp.opts.Authority != nil {
		all = append(all, made{"certificate-controller", controllerUser("certificate-controller"), func(c *client.Client, i *client.Cache) (runner, error) {
			return certificates.New(c, i, certificates.Options{Authority: cp.opts.Authority, Review: cp.review, Reserved: cp.opts.ServedAs, Log: log})
		}})
	}
	for _, m := range all {
		c, informers, err := cp.as(client.Options{User: m.user, Manager: controllerManager, Lister: controllersUser()}, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		built, err := m.build(c, informers)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		cp.run(m.name, built.Run)
	}
	return nil
}

// review answers what a SubjectAccessReview about a resource would.
func (cp *ControlPlane) review(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (bool, error) {
	extra := make(map[string][]string, len(spec.Extra))
	for key, values := range spec.Extra {
		extra[key] = values
	}
	about := spec.ResourceAttributes
	decision, _, err := cp.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
		User: &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups, Extra: extra},
		Verb: about.Verb, Namespace: about.Namespace, APIGroup: about.Group, APIVersion: about.Version,
		Resource: about.Resource, Subresource: about.Subresource, Name: about.Name, ResourceRequest: true,
	})
	return decision == authorizer.DecisionAllow, err
}
