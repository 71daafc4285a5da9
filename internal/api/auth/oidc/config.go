package oidc

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
)

// Provider is one issuer as kube-apiserver's --oidc-* flags describe it.
type Provider struct {
	IssuerURL      string // https
	ClientID       string // the audience of its tokens
	UsernameClaim  string // default "sub"
	UsernamePrefix string // default the issuer's URL and "#", none for claim "email"; "-" is none
	GroupsClaim    string // "": tokens name no groups
	GroupsPrefix   string
	RequiredClaims map[string]string // claims and the values they must have
	CAFile         string            // PEM that verifies the issuer; "": the system's
}

// configuration is the file, or what is the same of the flags.
func (o *Options) configuration() (*apiserver.AuthenticationConfiguration, []byte, error) {
	if o.File == "" {
		config, err := o.Provider.configuration()
		return config, nil, err
	}
	data, err := os.ReadFile(o.File)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the authentication configuration: %w", err)
	}
	config, err := decode(data)
	if err != nil {
		return nil, data, fmt.Errorf("reading the authentication configuration %s: %w", o.File, err)
	}
	return config, data, nil
}

// decode reads a file strictly: an unknown field is an error.
func decode(data []byte) (*apiserver.AuthenticationConfiguration, error) {
	if len(data) == 0 {
		return nil, errors.New("it is empty")
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	object, err := runtime.Decode(serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder(), data)
	if err != nil {
		return nil, err
	}
	config, ok := object.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return nil, fmt.Errorf("it is a %T, want an AuthenticationConfiguration", object)
	}
	return config, nil
}

// check validates config as upstream does, with its CEL expressions. accountIssuers sign service accounts' tokens
// and cannot be providers.
func check(config *apiserver.AuthenticationConfiguration, accountIssuers []string) error {
	return validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), config, accountIssuers).ToAggregate()
}

// configuration turns the flags into a configuration with one provider, as kube-apiserver does.
func (p *Provider) configuration() (*apiserver.AuthenticationConfiguration, error) {
	if p.IssuerURL == "" || p.ClientID == "" {
		return nil, errors.New("oidc-issuer-url and oidc-client-id belong together")
	}
	claim := p.UsernameClaim
	if claim == "" {
		claim = "sub"
	}
	prefix := p.UsernamePrefix
	switch {
	case prefix == "-":
		prefix = ""
	case prefix == "" && claim != "email":
		prefix = p.IssuerURL + "#"
	}
	jwt := apiserver.JWTAuthenticator{
		Issuer:        apiserver.Issuer{URL: p.IssuerURL, Audiences: []string{p.ClientID}},
		ClaimMappings: apiserver.ClaimMappings{Username: apiserver.PrefixedClaimOrExpression{Claim: claim, Prefix: &prefix}},
	}
	if p.GroupsClaim != "" {
		groups := p.GroupsPrefix
		jwt.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Claim: p.GroupsClaim, Prefix: &groups}
	}
	for claim, value := range p.RequiredClaims {
		jwt.ClaimValidationRules = append(jwt.ClaimValidationRules, apiserver.ClaimValidationRule{Claim: claim, RequiredValue: value})
	}
	if p.CAFile != "" {
		ca, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the issuer's CA: %w", err)
		}
		jwt.Issuer.CertificateAuthority = strings.TrimSpace(string(ca)) + "\n"
	}
	return &apiserver.AuthenticationConfiguration{JWT: []apiserver.JWTAuthenticator{jwt}}, nil
}
