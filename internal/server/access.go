package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/client-go/util/keyutil"

	"gantry.dev/gantry/internal/api"
	"gantry.dev/gantry/internal/api/audit"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/api/auth/oidc"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/config"
)

// access is what decides who is believed and what is recorded, beside the objects in the cluster.
type access struct {
	config config.Access
	oidc   *oidc.Authenticator // nil: no provider
	audit  *audit.Log          // nil: nothing is recorded
}

// newAccess reads the files that config names. nil is kube-apiserver's defaults.
func newAccess(config *config.Access, opts *ControlPlaneOptions) (*access, error) {
	a := &access{}
	a.config.AnonymousAuth, a.config.BootstrapTokens = true, true
	if config != nil {
		a.config = *config
	}
	if len(a.config.ServiceAccounts.Issuers) == 0 {
		a.config.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc." + opts.ClusterDomain}
	}
	if len(a.config.ServiceAccounts.Audiences) == 0 {
		a.config.ServiceAccounts.Audiences = a.config.ServiceAccounts.Issuers
	}
	c := &a.config
	if c.AuthenticationFile != "" || c.OIDC.IssuerURL != "" {
		o := oidc.Options{
			File: c.AuthenticationFile, SigningAlgs: c.OIDC.SigningAlgs,
			AccountIssuers: c.ServiceAccounts.Issuers, Audiences: c.ServiceAccounts.Audiences, Log: opts.Logger,
		}
		if o.File == "" {
			o.Provider = &oidc.Provider{
				IssuerURL: c.OIDC.IssuerURL, ClientID: c.OIDC.ClientID, UsernameClaim: c.OIDC.UsernameClaim, UsernamePrefix: c.OIDC.UsernamePrefix,
				GroupsClaim: c.OIDC.GroupsClaim, GroupsPrefix: c.OIDC.GroupsPrefix, RequiredClaims: c.OIDC.RequiredClaims, CAFile: c.OIDC.CAFile,
			}
		}
		var err error
		if a.oidc, err = oidc.New(o); err != nil {
			return nil, err
		}
	}
	if c.Audit.PolicyFile == "" {
		return a, nil
	}
	var err error
	a.audit, err = audit.New(audit.Options{
		PolicyFile: c.Audit.PolicyFile, LogPath: c.Audit.LogPath, LogMaxAge: c.Audit.LogMaxAge, LogMaxBackup: c.Audit.LogMaxBackup,
		LogMaxSizeMB: c.Audit.LogMaxMB, LogCompress: c.Audit.LogCompress, WebhookConfigFile: c.Audit.WebhookFile,
	})
	return a, err
}

// authentication fills in what opts does not know yet.
func (a *access) authentication(opts auth.Options, endpoint string) (auth.Options, error) {
	accounts := &a.config.ServiceAccounts
	opts.Issuers, opts.Audiences, opts.JWKSURI = accounts.Issuers, accounts.Audiences, accounts.JWKSURI
	if opts.JWKSURI == "" && endpoint != "" {
		opts.JWKSURI = "https://" + endpoint + "/openid/v1/jwks"
	}
	if accounts.SigningKeyFile != "" {
		key, err := keyutil.PrivateKeyFromFile(accounts.SigningKeyFile)
		if err != nil {
			return opts, fmt.Errorf("reading the key of service account tokens: %w", err)
		}
		switch key := key.(type) {
		case *ecdsa.PrivateKey:
			opts.SigningKey = key
		case *rsa.PrivateKey:
			opts.SigningKey = key
		default:
			return opts, fmt.Errorf("%s holds a %T: service account tokens are signed with RSA or ECDSA", accounts.SigningKeyFile, key)
		}
	}
	for _, path := range accounts.KeyFiles {
		keys, err := keyutil.PublicKeysFromFile(path)
		if err != nil {
			return opts, fmt.Errorf("reading keys of service account tokens: %w", err)
		}
		for _, key := range keys {
			opts.VerifyKeys = append(opts.VerifyKeys, crypto.PublicKey(key))
		}
	}
	opts.BootstrapTokens = a.config.BootstrapTokens
	if !a.config.AnonymousAuth {
		opts.Anonymous = &apiserver.AnonymousAuthConfig{}
	}
	if a.oidc != nil {
		opts.Tokens = []authenticator.Token{a.oidc}
		if config := a.oidc.Anonymous(); config != nil {
			opts.Anonymous = config
		}
	}
	return opts, nil
}

// admission makes plugins' annotations part of the audit log, if there is one.
func (a *access) admission(chain registry.Admission) registry.Admission {
	if a.audit == nil {
		return chain
	}
	return audit.WithAnnotations(chain)
}

// log is the audit log as the API wants it: nil if there is none.
func (a *access) log() api.AuditLog {
	if a.audit == nil {
		return nil
	}
	return a.audit
}

// runAccess starts what follows files and sends events.
func (cp *ControlPlane) runAccess(run func(string, func(context.Context) error)) {
	if cp.access.oidc != nil {
		run("oidc", cp.access.oidc.Run)
	}
	if cp.access.audit != nil {
		run("audit log", cp.access.audit.Run)
	}
	run("encryption keys", func(ctx context.Context) error { return cp.encryption.Run(ctx, cp.store, cp.tables) })
}

// tables are those of the store, by the resource whose encryption they have.
func (cp *ControlPlane) tables() map[schema.GroupResource]string {
	tables := map[schema.GroupResource]string{}
	for _, resource := range cp.registry.Resources() {
		if table := resource.StoredIn(); resource.Primary && table != "" {
			tables[resource.Resource.GroupResource()] = table
		}
	}
	return tables
}
