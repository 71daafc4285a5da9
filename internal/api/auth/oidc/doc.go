// Package oidc accepts tokens of OpenID Connect providers, as one set of flags or an
// AuthenticationConfiguration file (apiserver.config.k8s.io/v1) describes them.
//
// What the file means, how claims become a user and how keys are fetched is upstream's. This
// package reads the file again when it changes and puts the new providers into place once they
// answer. Start at New and Authenticator.Run.
package oidc
