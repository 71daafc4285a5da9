package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gantry.dev/gantry/internal/platform/access"
)

// authorityPath is where a server shows the certificate of its authority, to be compared with a fingerprint.
const authorityPath = "/.well-known/gantry/ca.crt"

const loginTimeout = 30 * time.Second

func (a *app) loginCommand() *cobra.Command {
	var name, print string
	cmd := &cobra.Command{
		Use: "login ssh://USER@HOST[:PORT] | https://HOST[:PORT]", Short: "Reach a cluster on another machine", GroupID: groupCluster, Args: exactArgs("the address"),
		Long: "Reach a cluster on another machine, and make it the one that commands use.\n\n" +
			"ssh://USER@HOST fetches the administrator's credentials with the system's ssh (root, or who may sudo without a password) and from then\n" +
			"on leads each command's connection through ssh: the API's port may be closed to the world. ssh://USER@HOST/DIR names the data dir there.\n\n" +
			"https://HOST takes a token (\"gantry user add\" prints one) from standard input. The server's authority is shown and asked about, or\n" +
			"given by --fingerprint.",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch scheme, _, _ := strings.Cut(args[0], "://"); scheme {
			case "ssh":
				return a.loginSSH(cmd.Context(), args[0], name)
			case "https":
				return a.loginHTTPS(cmd.Context(), args[0], name, print)
			}
			return usage("%q is neither ssh://USER@HOST nor https://HOST", args[0])
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the context is called (default: the host)")
	cmd.Flags().StringVar(&print, "fingerprint", "", "sha256:… of the certificate of the server's authority")
	return cmd
}

// loginSSH fetches the administrator's credentials.
func (a *app) loginSSH(ctx context.Context, target, name string) error {
	place, err := parseSSH(target)
	if err != nil {
		return err
	}
	text, err := a.overSSH(ctx, place, "PATH=$PATH:/usr/local/bin:/usr/local/sbin gantry version --json")
	if err != nil {
		return err
	}
	if err := a.checkVersion(place.Host, text); err != nil {
		return err
	}
	flags := ""
	if place.DataDir != "" {
		flags = "--data-dir '" + strings.ReplaceAll(place.DataDir, "'", `'\''`) + "' "
	}
	const who = `if [ "$(id -u)" = 0 ]; then S=; else S="sudo -n"; fi; `
	text, err = a.overSSH(ctx, place, who+"PATH=$PATH:/usr/local/bin:/usr/local/sbin; $S \"$(command -v gantry)\" "+flags+"kubeconfig --context -")
	if err != nil {
		return err
	}
	from, err := clientcmd.Load([]byte(text))
	if err != nil || from.Contexts[from.CurrentContext] == nil {
		return withCode(exitUnreachable, fmt.Errorf("gantry on %s did not answer with a kubeconfig: %s", place.Host, strings.TrimSpace(text)))
	}
	chosen := from.Contexts[from.CurrentContext]
	cluster, user := from.Clusters[chosen.Cluster], from.AuthInfos[chosen.AuthInfo]
	if cluster == nil || user == nil {
		return withCode(exitUnreachable, fmt.Errorf("the kubeconfig of %s is not whole", place.Host))
	}
	return a.saveLogin(ctx, cmp.Or(name, place.Host), name == "", cluster, user, place)
}

// checkVersion compares the other machine's program with this one. Another major version does not understand this one's.
func (a *app) checkVersion(host, text string) error {
	var there versionDocument
	if err := json.Unmarshal([]byte(text), &there); err != nil || there.Version == "" {
		return withCode(exitUnreachable, fmt.Errorf("what is called gantry on %s is something else: %s", host, strings.TrimSpace(text)))
	}
	ours, theirs := strings.Split(strings.TrimPrefix(a.env.Version, "v"), "."), strings.Split(strings.TrimPrefix(there.Version, "v"), ".")
	if len(ours) < 2 || len(theirs) < 2 {
		return nil // a program that was built for development
	}
	if ours[0] != theirs[0] {
		return withCode(exitUnreachable, fmt.Errorf("%s has gantry %s, and this is %s: they do not understand each other; take the same major version", host, there.Version, a.env.Version))
	}
	if ours[1] != theirs[1] {
		a.warn("%s has gantry %s, and this is %s", host, there.Version, a.env.Version)
	}
	return nil
}

// saveLogin tries the credentials and writes the context.
func (a *app) saveLogin(ctx context.Context, name string, mayRename bool, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo, place *sshPlace) error {
	contexts, err := a.contexts()
	if err != nil {
		return err
	}
	if mayRename && place == nil {
		name = freeName(contexts, name, cluster.Server)
	}
	if err := addContext(contexts, name, cluster, user, place); err != nil {
		return err
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*contexts, name, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return usage("what the server gave is no login: %w", err)
	}
	if place != nil {
		if err := a.throughSSH(ctx, place, config); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	who, err := whoAmI(ctx, config)
	if err != nil {
		return err
	}
	if err := a.writeContexts(contexts); err != nil {
		return err
	}
	return a.printf("logged in to %s as %s; commands now use it\n", name, who)
}

// whoAmI asks a server for whom it takes us.
func whoAmI(ctx context.Context, config *rest.Config) (string, error) {
	server, err := access.Connect(config)
	if err != nil {
		return "", err
	}
	name, err := server.WhoAmI(ctx)
	if err != nil {
		return "", accessError("log in", err)
	}
	return name, nil
}

// loginHTTPS takes a token.
func (a *app) loginHTTPS(ctx context.Context, target, name, print string) error {
	u, err := url.Parse(target)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return usage("%q is not like https://HOST or https://HOST:PORT", target)
	}
	server := "https://" + net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "6443"))
	asking, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	cluster := &clientcmdapi.Cluster{Server: server}
	authority, err := a.authorityOf(asking, server, print)
	if err != nil {
		return err
	}
	cluster.CertificateAuthorityData = authority
	token, err := a.readSecret("token", "")
	if err != nil {
		return usage("the token: %w", err)
	}
	user := &clientcmdapi.AuthInfo{Token: strings.TrimSpace(string(token))}
	return a.saveLogin(ctx, cmp.Or(name, u.Hostname()), name == "", cluster, user, nil)
}

// authorityOf is the certificate of the server's authority, once somebody said that it is the right one. A server that this machine
// believes anyway needs none.
func (a *app) authorityOf(ctx context.Context, server, print string) ([]byte, error) {
	if print == "" {
		if text, err := fetchAuthority(ctx, server, &tls.Config{MinVersion: tls.VersionTLS12}); err == nil && len(text) > 0 {
			return nil, nil // its certificate is from an authority of this machine
		}
	}
	text, err := fetchAuthority(ctx, server, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}) //nolint:gosec // what it says is compared with the fingerprint
	if err != nil {
		return nil, err
	}
	got := fingerprint(text)
	if got == "" {
		return nil, withCode(exitUnreachable, fmt.Errorf("there is no gantry at %s: it shows no certificate of an authority", server))
	}
	switch {
	case print != "" && !strings.EqualFold(strings.ReplaceAll(print, ":", ""), strings.ReplaceAll(got, ":", "")):
		return nil, withCode(exitUnreachable, fmt.Errorf("%s is not the server that you mean: its authority is %s, not %s", server, got, print))
	case print == "" && !a.env.IsTerminal:
		return nil, usage("the authority of %s is %s; if that is right, say so: --fingerprint %s", server, got, got)
	case print == "":
		_, _ = fmt.Fprintf(a.env.Stderr, "The authority of %s is\n  %s\n\"gantry user add\" on the server shows the right one.\n", server, got)
		if err := a.confirm("Is it the same"); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	if _, err := fetchAuthority(ctx, server, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}); err != nil {
		return nil, err
	}
	return text, nil
}

// fetchAuthority asks a server for the certificate of its authority.
func fetchAuthority(ctx context.Context, server string, config *tls.Config) ([]byte, error) {
	transport := &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+authorityPath, nil)
	if err != nil {
		return nil, usage("the address %s: %w", server, err)
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if verify, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return nil, withCode(exitUnreachable, fmt.Errorf("the certificate of %s is not good: %w", server, verify.Err))
	}
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("nobody answers at %s: %w\n→ is the port open? ssh://USER@HOST needs none", server, err))
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, withCode(exitUnreachable, fmt.Errorf("there is no gantry at %s: it answers %s", server, answer.Status))
	}
	return text, nil
}
