package config

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestAccess(t *testing.T) {
	c, err := load(t, []string{
		"--oidc-issuer-url=https://login.example.com", "--oidc-client-id=gantry", "--oidc-required-claim=hd=example.com,tier=1", "--oidc-required-claim=x=a=b",
		"--service-account-issuer=https://a,https://b", "--api-audiences=api", "--audit-policy-file=/p.yaml", "--audit-log-path=-", "--audit-log-maxage=7", "--anonymous-auth=false",
	}, []string{"GANTRY_OIDC_GROUPS_CLAIM=groups", "GANTRY_SERVICE_ACCOUNT_KEY_FILE=/a.pub,/b.pub"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := c.Access
	if a.OIDC.IssuerURL != "https://login.example.com" || a.OIDC.ClientID != "gantry" || a.OIDC.GroupsClaim != "groups" ||
		!maps.Equal(a.OIDC.RequiredClaims, map[string]string{"hd": "example.com", "tier": "1", "x": "a=b"}) {
		t.Errorf("OIDC %+v", a.OIDC)
	}
	if !slices.Equal(a.ServiceAccounts.Issuers, []string{"https://a", "https://b"}) || !slices.Equal(a.ServiceAccounts.KeyFiles, []string{"/a.pub", "/b.pub"}) ||
		!slices.Equal(a.ServiceAccounts.Audiences, []string{"api"}) {
		t.Errorf("service accounts %+v", a.ServiceAccounts)
	}
	if a.Audit.PolicyFile != "/p.yaml" || a.Audit.LogPath != "-" || a.Audit.LogMaxAge != 7 || a.Audit.LogMaxBackup != 100 || a.Audit.LogMaxMB != 100 || a.AnonymousAuth || !a.BootstrapTokens {
		t.Errorf("audit %+v, anonymous %v, bootstrap tokens %v", a.Audit, a.AnonymousAuth, a.BootstrapTokens)
	}
}

func TestAccessErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		say  string
	}{
		"issuer alone":         {[]string{"--oidc-issuer-url=https://a"}, "says nothing without both issuer and client"},
		"claim alone":          {[]string{"--oidc-groups-claim=g"}, "says nothing without both issuer and client"},
		"file and flags":       {[]string{"--authentication-config=/f", "--oidc-client-id=a", "--oidc-issuer-url=https://a"}, "exclude authentication-config"},
		"no claim":             {[]string{"--oidc-issuer-url=https://a", "--oidc-client-id=a", "--oidc-required-claim=hd"}, "is no claim and value"},
		"audit without policy": {[]string{"--audit-log-path=/l"}, "but no policy"},
		"policy alone":         {[]string{"--audit-policy-file=/p"}, "no place to record to"},
		"negative":             {[]string{"--audit-log-maxage=-1"}, "is not such a number"},
		"neither":              {[]string{"--enable-bootstrap-token-auth=perhaps"}, "perhaps"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "neither" {
				tc.args = nil
				if _, err := load(t, nil, []string{"GANTRY_ENABLE_BOOTSTRAP_TOKEN_AUTH=perhaps"}, nil); err == nil || !strings.Contains(err.Error(), tc.say) {
					t.Errorf("load: %v", err)
				}
				return
			}
			if _, err := load(t, tc.args, nil, nil); err == nil || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("load: %v, want %q", err, tc.say)
			}
		})
	}
}
