package cli

import (
	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/join"
)

// joinFlags are those of "up" that make a machine a part of another's cluster.
type joinFlags struct {
	address string
	token   string
	server  bool
}

func (f *joinFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "join", "", "address of a server, such as 192.0.2.1 or 192.0.2.1:6443: become a worker of its cluster")
	cmd.Flags().BoolVar(&f.server, "server", false, "with --join: become a further server")
	cmd.Flags().StringVar(&f.token, "token", "", "what \"gantry token create\" printed on that server")
}

// request is what the flags ask for; nil is nothing.
func (f *joinFlags) request() (*JoinRequest, error) {
	if f.server && f.address == "" {
		return nil, usage("--server goes with --join and --token; the first server of a cluster needs none of them")
	}
	if f.address == "" && f.token == "" {
		return nil, nil //nolint:nilnil // nothing asked for is no error
	}
	if f.address == "" || f.token == "" {
		return nil, usage("--join and --token go together: \"gantry token create\" on a server prints both")
	}
	address, err := join.WithPort(f.address)
	if err != nil {
		return nil, usage("--join: %w", err)
	}
	token, err := join.ParseToken(f.token)
	if err != nil {
		return nil, usage("--token: %w", err)
	}
	return &JoinRequest{Address: address, Token: token, Server: f.server}, nil
}
