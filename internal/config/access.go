package config

import (
	"path/filepath"
	"strconv"
	"strings"
)

// Access is who is believed, what is recorded and how it is encrypted. Names and meaning are those of
// kube-apiserver's flags.
type Access struct {
	AnonymousAuth      bool
	AuthenticationFile string // AuthenticationConfiguration; excludes OIDC
	OIDC               OIDC
	BootstrapTokens    bool
	ServiceAccounts    ServiceAccounts
	EncryptionFile     string // EncryptionConfiguration; empty: pki/encryption.yaml in the data dir, made when missing
	Audit              Audit
}

// OIDC is one OpenID Connect provider.
type OIDC struct {
	IssuerURL, ClientID           string
	UsernameClaim, UsernamePrefix string
	GroupsClaim, GroupsPrefix     string
	CAFile                        string
	SigningAlgs                   []string
	RequiredClaims                map[string]string
}

// ServiceAccounts is about service accounts' tokens.
type ServiceAccounts struct {
	Issuers        []string // the first signs; empty: the cluster's
	Audiences      []string // empty: Issuers
	KeyFiles       []string // further keys that verify
	SigningKeyFile string   // empty: pki/sa.key in the data dir
	JWKSURI        string
}

// Audit is the audit log; it is off without a policy.
type Audit struct {
	PolicyFile, LogPath               string
	LogMaxAge, LogMaxBackup, LogMaxMB int
	LogCompress                       bool
	WebhookFile                       string
}

// Names of the keys of Access.
const (
	KeyAnonymousAuth     = "anonymous-auth"
	KeyAuthentication    = "authentication-config"
	KeyOIDCIssuer        = "oidc-issuer-url"
	KeyOIDCClient        = "oidc-client-id"
	KeyOIDCUsername      = "oidc-username-claim"
	KeyOIDCUserPrefix    = "oidc-username-prefix"
	KeyOIDCGroups        = "oidc-groups-claim"
	KeyOIDCGroupsPrefix  = "oidc-groups-prefix"
	KeyOIDCRequired      = "oidc-required-claim"
	KeyOIDCCA            = "oidc-ca-file"
	KeyOIDCAlgs          = "oidc-signing-algs"
	KeyBootstrapTokens   = "enable-bootstrap-token-auth"
	KeyAccountIssuer     = "service-account-issuer"
	KeyAccountKeyFile    = "service-account-key-file"
	KeyAccountSigningKey = "service-account-signing-key-file"
	KeyAccountJWKS       = "service-account-jwks-uri"
	KeyAudiences         = "api-audiences"
	KeyEncryption        = "encryption-provider-config"
	KeyAuditPolicy       = "audit-policy-file"
	KeyAuditLog          = "audit-log-path"
	KeyAuditMaxAge       = "audit-log-maxage"
	KeyAuditMaxBackup    = "audit-log-maxbackup"
	KeyAuditMaxSize      = "audit-log-maxsize"
	KeyAuditCompress     = "audit-log-compress"
	KeyAuditWebhook      = "audit-webhook-config-file"
)

// accessKeys are the settings of Access.
func accessKeys() []Key {
	text := func(name, usage string, at func(*Access) *string) Key {
		return Key{Name: name, Usage: usage, set: func(c *Config, v []string) error { *at(&c.Access) = v[0]; return nil }}
	}
	file := func(name, usage string, at func(*Access) *string) Key {
		return Key{Name: name, Usage: usage, set: func(c *Config, v []string) (err error) { *at(&c.Access), err = absolute(v[0]); return err }}
	}
	list := func(name, usage string, at func(*Access) *[]string) Key {
		return Key{Name: name, Usage: usage, List: true, set: func(c *Config, v []string) error { *at(&c.Access) = entries(v); return nil }}
	}
	number := func(name, byDefault, usage string, at func(*Access) *int) Key {
		return Key{Name: name, Default: byDefault, Usage: usage, set: func(c *Config, v []string) (err error) { *at(&c.Access), err = count(v[0]); return err }}
	}
	truth := func(name, byDefault, usage string, at func(*Access) *bool) Key {
		return Key{Name: name, Default: byDefault, Bool: true, Usage: usage, set: func(c *Config, v []string) (err error) { *at(&c.Access), err = yesOrNo(v[0]); return err }}
	}
	return []Key{
		truth(KeyAnonymousAuth, "true", "take requests without credentials as system:anonymous's", func(a *Access) *bool { return &a.AnonymousAuth }),
		file(KeyAuthentication, "AuthenticationConfiguration file: OIDC providers, anonymous requests; read again when it changes", func(a *Access) *string { return &a.AuthenticationFile }),
		text(KeyOIDCIssuer, "https URL of the OpenID Connect provider whose tokens are believed", func(a *Access) *string { return &a.OIDC.IssuerURL }),
		text(KeyOIDCClient, "client id that the provider's tokens must be for", func(a *Access) *string { return &a.OIDC.ClientID }),
		text(KeyOIDCUsername, "claim that is the user name (default: sub)", func(a *Access) *string { return &a.OIDC.UsernameClaim }),
		text(KeyOIDCUserPrefix, "put before user names; - for nothing (default: the issuer's URL and #)", func(a *Access) *string { return &a.OIDC.UsernamePrefix }),
		text(KeyOIDCGroups, "claim that lists the user's groups", func(a *Access) *string { return &a.OIDC.GroupsClaim }),
		text(KeyOIDCGroupsPrefix, "put before groups", func(a *Access) *string { return &a.OIDC.GroupsPrefix }),
		{Name: KeyOIDCRequired, List: true, Usage: "CLAIM=VALUE that tokens must have; may be repeated", set: setRequiredClaims},
		file(KeyOIDCCA, "PEM file that verifies the provider (default: the system's)", func(a *Access) *string { return &a.OIDC.CAFile }),
		list(KeyOIDCAlgs, "algorithms that the provider may sign with (default: RS256); may be repeated", func(a *Access) *[]string { return &a.OIDC.SigningAlgs }),
		truth(KeyBootstrapTokens, "true", "accept tokens of Secrets of type bootstrap.kubernetes.io/token", func(a *Access) *bool { return &a.BootstrapTokens }),
		list(KeyAccountIssuer, "issuer of service account tokens; the first signs, all are accepted; may be repeated", func(a *Access) *[]string { return &a.ServiceAccounts.Issuers }),
		list(KeyAudiences, "audiences of the API (default: the issuers); may be repeated", func(a *Access) *[]string { return &a.ServiceAccounts.Audiences }),
		{Name: KeyAccountKeyFile, List: true, Usage: "PEM file with further keys that verify service account tokens; may be repeated", set: setKeyFiles},
		file(KeyAccountSigningKey, "PEM file with the key that signs service account tokens (default: pki/sa.key in the data dir)", func(a *Access) *string { return &a.ServiceAccounts.SigningKeyFile }),
		text(KeyAccountJWKS, "URL at which others find the keys of service account tokens", func(a *Access) *string { return &a.ServiceAccounts.JWKSURI }),
		file(KeyEncryption, "EncryptionConfiguration file (default: pki/encryption.yaml in the data dir); read again when it changes", func(a *Access) *string { return &a.EncryptionFile }),
		file(KeyAuditPolicy, "audit Policy file; without one nothing is recorded", func(a *Access) *string { return &a.Audit.PolicyFile }),
		{Name: KeyAuditLog, Usage: "file that audit events are written to; - is standard output", set: setAuditLog},
		number(KeyAuditMaxAge, "366", "days that old audit files are kept, 0 for ever", func(a *Access) *int { return &a.Audit.LogMaxAge }),
		number(KeyAuditMaxBackup, "100", "old audit files that are kept, 0 for all", func(a *Access) *int { return &a.Audit.LogMaxBackup }),
		number(KeyAuditMaxSize, "100", "megabytes at which the audit file is rotated, 0 for never", func(a *Access) *int { return &a.Audit.LogMaxMB }),
		truth(KeyAuditCompress, "false", "compress old audit files", func(a *Access) *bool { return &a.Audit.LogCompress }),
		file(KeyAuditWebhook, "kubeconfig that names where audit events are sent", func(a *Access) *string { return &a.Audit.WebhookFile }),
	}
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	out, err := filepath.Abs(path)
	if err != nil {
		return "", wrong("give an absolute path", "%q cannot be made absolute: %v", path, err)
	}
	return out, nil
}

// entries splits values at commas, as kube-apiserver's lists may be written.
func entries(values []string) []string {
	var out []string
	for _, value := range values {
		for _, entry := range strings.Split(value, ",") {
			if entry = strings.TrimSpace(entry); entry != "" {
				out = append(out, entry)
			}
		}
	}
	return out
}

func count(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, wrong("want a whole number, 0 or more", "%q is not such a number", text)
	}
	return n, nil
}

func yesOrNo(text string) (bool, error) {
	yes, err := strconv.ParseBool(text)
	if err != nil {
		return false, wrong("want true or false", "%q is neither true nor false", text)
	}
	return yes, nil
}

func setRequiredClaims(c *Config, values []string) error {
	claims := map[string]string{}
	for _, entry := range entries(values) {
		name, value, found := strings.Cut(entry, "=")
		if !found || name == "" {
			return wrong("want CLAIM=VALUE, such as hd=example.com", "%q is no claim and value", entry)
		}
		claims[name] = value
	}
	c.Access.OIDC.RequiredClaims = claims
	return nil
}

func setKeyFiles(c *Config, values []string) error {
	var files []string
	for _, path := range entries(values) {
		file, err := absolute(path)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	c.Access.ServiceAccounts.KeyFiles = files
	return nil
}

func setAuditLog(c *Config, v []string) (err error) {
	if v[0] == "-" {
		c.Access.Audit.LogPath = "-"
		return nil
	}
	c.Access.Audit.LogPath, err = absolute(v[0])
	return err
}

// checkAccess compares the settings of Access with each other.
func (c *Config) checkAccess(add func(key, want, format string, args ...any)) {
	a := &c.Access
	oidc := ""
	for _, key := range accessKeys() {
		if strings.HasPrefix(key.Name, "oidc-") && c.Given(key.Name) {
			oidc = key.Name
			break
		}
	}
	switch {
	case oidc != "" && a.AuthenticationFile != "":
		add(oidc, "describe the provider in the file", "%s and the other oidc- settings exclude %s", oidc, KeyAuthentication)
	case oidc != "" && (a.OIDC.IssuerURL == "" || a.OIDC.ClientID == ""):
		add(oidc, "give "+KeyOIDCIssuer+" and "+KeyOIDCClient, "%s says nothing without both issuer and client", oidc)
	}
	records := a.Audit.LogPath != "" || a.Audit.WebhookFile != ""
	switch {
	case records && a.Audit.PolicyFile == "":
		add(KeyAuditPolicy, "give a policy that says what is recorded", "audit events have a place to go to but no policy")
	case !records && a.Audit.PolicyFile != "":
		add(KeyAuditPolicy, "give "+KeyAuditLog+" or "+KeyAuditWebhook, "the audit policy has no place to record to")
	}
}
