package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// machineClient connects to the cluster whose machines a command is about.
func (a *app) machineClient(cmd *cobra.Command, t *appTarget) (client.Client, error) {
	config, err := a.clusterOf(cmd, t)
	if err != nil {
		return nil, err
	}
	t.cluster = &deploy.Cluster{Host: config.Host}
	config = rest.CopyConfig(config)
	config.QPS = -1
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), policyv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("prepare the types of the API: %w", err)
	}
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	for _, kind := range []string{"Pod", "Secret", "ConfigMap"} {
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	mapper.Add(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), meta.RESTScopeNamespace)
	mapper.Add(policyv1.SchemeGroupVersion.WithKind("Eviction"), meta.RESTScopeNamespace)
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	c, err := client.New(config, client.Options{HTTPClient: web, Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	return c, nil
}

func (a *app) tokenCommand() *cobra.Command {
	cmd := parent("token", "Create, list and revoke tokens with which machines join", a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
	cmd.GroupID = groupCluster
	return cmd
}

// tokenCreated is what "token create --json" prints.
type tokenCreated struct {
	Token   string    `json:"token"`
	Role    join.Role `json:"role"`
	Servers []string  `json:"servers"`
	Expires time.Time `json:"expires"`
	Command string    `json:"command"`
}

func (a *app) tokenCreateCommand() *cobra.Command {
	t := &appTarget{}
	var server bool
	var ttl string
	cmd := &cobra.Command{
		Use: "create", Short: "Print the command with which a machine joins this cluster", Args: exactArgs(),
		Long: "Print the command with which a machine joins this cluster. The token in it ends after --ttl, or when it is revoked;\n" +
			"several machines may use it until then. Who has it can make a machine a node: treat it like a password.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			life, err := appfile.ParseDuration(ttl)
			if err != nil || life < time.Minute {
				return usage("--ttl %q is not a duration of a minute or more, such as 24h", ttl)
			}
			c, err := a.machineClient(cmd, t)
			if err != nil {
				return err
			}
			role := join.Worker
			if server {
				role = join.Server
			}
			return a.tokenCreate(cmd.Context(), c, role, life)
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "for a further server, not for a worker")
	cmd.Flags().StringVar(&ttl, "ttl", "24h", "how long the token is good")
	return contextFlag(cmd, t)
}

func (a *app) tokenCreate(ctx context.Context, c client.Client, role join.Role, life time.Duration) error {
	made, err := join.CreateToken(ctx, c, role, life)
	if unreachable, ok := errors.AsType[*join.UnreachableError](err); ok {
		return usage("%w", unreachable)
	}
	if err != nil {
		return deploy.Reached("make a token", err)
	}
	command := "gantry up --join " + made.Servers[0]
	if role == join.Server {
		command += " --server"
	}
	command += " --token " + made.Token.String()
	if a.json {
		return a.printJSON(tokenCreated{made.Token.String(), role, made.Servers, made.Expires, command})
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "on the machine that is to be a %s, as root, until %s:\n", role, made.Expires.Format(time.RFC3339))
	return a.printf("%s\n", command)
}

func (a *app) tokenListCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "ls", Short: "List the tokens that are good", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.machineClient(cmd, t)
			if err != nil {
				return err
			}
			list, err := join.ListTokens(cmd.Context(), c)
			if err != nil {
				return deploy.Reached("list the tokens", err)
			}
			if a.json {
				return a.printJSON(append([]join.Listed{}, list...))
			}
			rows := [][]string{{"TOKEN", "FOR", "EXPIRES"}}
			for _, one := range list {
				expires := "never"
				if one.Expires != nil {
					expires = one.Expires.Format(time.RFC3339)
				}
				rows = append(rows, []string{one.ID, string(one.Role), expires})
			}
			return a.printTable(rows)
		},
	}, t)
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "revoke TOKEN", Short: "Make a token good for nothing; machines that joined with it stay", Args: exactArgs("the TOKEN's first part"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.machineClient(cmd, t)
			if err != nil {
				return err
			}
			err = join.RevokeToken(cmd.Context(), c, args[0])
			if errors.Is(err, join.ErrNoToken) {
				return usage("there is no token %s; see \"gantry token ls\"", args[0])
			}
			if err != nil {
				return deploy.Reached("revoke the token", err)
			}
			return a.printf("the token is revoked\n")
		},
	}, t)
}
