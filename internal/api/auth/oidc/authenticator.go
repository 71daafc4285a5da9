package oidc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/token/cache"
	"k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

// Options says which providers are believed. Give File or Provider.
type Options struct {
	File           string    // an AuthenticationConfiguration, read again when it changes
	Provider       *Provider // one provider without a file
	SigningAlgs    []string  // of Provider's tokens, default {"RS256"}; with File all that are safe
	AccountIssuers []string  // of service accounts' tokens: no provider may be one of them
	Audiences      []string  // of the API server

	Log       *slog.Logger  // default: discards
	Poll      time.Duration // how often File is looked at, default 5s
	ReadyWait time.Duration // how long new providers may take to answer before the old ones stay, default 1m
}

// Times that are upstream's (kubernetes, pkg/kubeapiserver).
const (
	successTTL = 10 * time.Second // how long a good token is not looked at again
	oldGrace   = time.Minute      // how long providers that were replaced serve requests under way
	healthPoll = 100 * time.Millisecond
)

// Authenticator accepts the providers' tokens while Run runs. It is safe for concurrent use.
type Authenticator struct {
	opts    Options
	first   *apiserver.AuthenticationConfiguration
	content []byte // of the file at last
	current atomic.Pointer[providers]
}

// providers are those of one configuration.
type providers struct {
	token  authenticator.Token
	health []func() error
	stop   context.CancelFunc
}

var _ authenticator.Token = (*Authenticator)(nil)

// New reads and checks the configuration. Nothing is fetched before Run.
func New(opts Options) (*Authenticator, error) {
	if (opts.File == "") == (opts.Provider == nil) {
		return nil, errors.New("oidc: Options need File or Provider, not both")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.Poll, opts.ReadyWait = cmp.Or(opts.Poll, 5*time.Second), cmp.Or(opts.ReadyWait, time.Minute)
	if opts.File != "" {
		opts.SigningAlgs = oidc.AllValidSigningAlgorithms()
	}
	config, content, err := opts.configuration()
	if err != nil {
		return nil, fmt.Errorf("oidc: %w", err)
	}
	if err := check(config, opts.AccountIssuers); err != nil {
		return nil, fmt.Errorf("oidc: invalid authentication configuration: %w", err)
	}
	return &Authenticator{opts: opts, first: config, content: content}, nil
}

// Anonymous is what the file says about requests without credentials, nil if it says nothing. It cannot change while
// the server runs.
func (a *Authenticator) Anonymous() *apiserver.AnonymousAuthConfig { return a.first.Anonymous }

// AuthenticateToken implements authenticator.Token.
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	current := a.current.Load()
	if current == nil {
		return nil, false, nil
	}
	return current.token.AuthenticateToken(ctx, token)
}

// Run fetches the providers' keys and follows the file until ctx ends.
func (a *Authenticator) Run(ctx context.Context) error {
	var replaced sync.WaitGroup
	defer replaced.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	made, err := a.build(ctx, a.first)
	if err != nil {
		return fmt.Errorf("making the OIDC authenticators: %w", err)
	}
	a.current.Store(made)
	defer a.current.Store(nil)
	if a.opts.File == "" {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(a.opts.Poll)
	defer ticker.Stop()
	complaint := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		old, err := a.reload(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != complaint {
			complaint = err.Error()
			a.opts.Log.Error("the authentication configuration stays as it was", "file", a.opts.File, "error", err)
		}
		if old == nil {
			continue
		}
		a.opts.Log.Info("authentication configuration reloaded", "file", a.opts.File)
		replaced.Go(func() {
			timer := time.NewTimer(oldGrace)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			old.stop()
		})
	}
}

// reload puts a changed file into place and returns what it replaced, nil if nothing changed. A file that is wrong is
// complained about once; one whose providers do not answer is tried again.
func (a *Authenticator) reload(ctx context.Context) (*providers, error) {
	data, err := os.ReadFile(a.opts.File)
	if err != nil || bytes.Equal(data, a.content) {
		return nil, err
	}
	config, err := decode(data)
	if err == nil {
		err = check(config, a.opts.AccountIssuers)
	}
	if err == nil && !reflect.DeepEqual(config.Anonymous, a.first.Anonymous) {
		err = errors.New("anonymous cannot change while the server runs")
	}
	if err != nil {
		a.content = data
		return nil, err
	}
	made, err := a.build(ctx, config)
	if err != nil {
		a.content = data
		return nil, err
	}
	if err := a.await(ctx, made); err != nil {
		made.stop()
		return nil, err
	}
	a.content = data
	return a.current.Swap(made), nil
}

// await returns when all providers have answered.
func (a *Authenticator) await(ctx context.Context, made *providers) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.ReadyWait)
	defer cancel()
	ticker := time.NewTicker(healthPoll)
	defer ticker.Stop()
	for {
		var errs []error
		for _, healthy := range made.health {
			errs = append(errs, healthy())
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}

// staticCA gives upstream the PEM that verifies an issuer.
type staticCA string

// CurrentCABundleContent implements upstream's CAContentProvider.
func (s staticCA) CurrentCABundleContent() []byte { return []byte(s) }

// build makes the authenticators of config; they fetch keys until stop is called.
func (a *Authenticator) build(ctx context.Context, config *apiserver.AuthenticationConfiguration) (*providers, error) {
	ctx, cancel := context.WithCancel(ctx)
	out := &providers{stop: cancel}
	var tokens []authenticator.Token
	for i := range config.JWT {
		opts := oidc.Options{JWTAuthenticator: config.JWT[i], SupportedSigningAlgs: a.opts.SigningAlgs, DisallowedIssuers: a.opts.AccountIssuers}
		if ca := config.JWT[i].Issuer.CertificateAuthority; ca != "" {
			opts.CAContentProvider = staticCA(ca)
		}
		one, err := oidc.New(ctx, opts)
		if err != nil {
			cancel()
			return nil, err
		}
		tokens, out.health = append(tokens, one), append(out.health, one.HealthCheck)
	}
	agnostic := authenticator.WrapAudienceAgnosticToken(a.opts.Audiences, union.NewFailOnError(tokens...))
	out.token = cache.New(agnostic, true, successTTL, 0)
	return out, nil
}
