package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/join"
)

// joinFlags are those of "up" that make a machine a part of another's cluster.
type joinFlags struct {
	address string
	token   string
	file    string
	server  bool
}

func (f *joinFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "join", "", "address of a server, such as 192.0.2.1 or 192.0.2.1:6443: become a worker of its cluster")
	cmd.Flags().BoolVar(&f.server, "server", false, "with --join: become a further server")
	cmd.Flags().StringVar(&f.token, "token", "", "what \"gantry token create\" printed on that server; also "+tokenVariable+" in the environment")
	cmd.Flags().StringVar(&f.file, "token-file", "", "file that holds the token")
}

// tokenVariable holds the token where neither --token nor --token-file is given.
const tokenVariable = "GANTRY_TOKEN"

// maxTokenFile bounds a file with a token in bytes.
const maxTokenFile = 4 << 10

// find looks for the token where the flag does not have it.
func (f *joinFlags) find(variable string) error {
	switch {
	case f.token != "" && f.file != "":
		return usage("--token and --token-file exclude each other")
	case f.file != "":
		info, err := os.Stat(f.file)
		if err == nil && info.Size() > maxTokenFile {
			err = fmt.Errorf("%s is too large to hold a token", f.file)
		}
		var data []byte
		if err == nil {
			data, err = os.ReadFile(f.file)
		}
		if err != nil {
			return usage("--token-file: %w", err)
		}
		if f.token = strings.TrimSpace(string(data)); f.token == "" {
			return usage("--token-file: %s is empty", f.file)
		}
	case f.token == "" && f.address != "":
		f.token = variable
	}
	return nil
}

// withoutToken is a command line without --token, which everybody on the machine could read.
func withoutToken(args []string) []string {
	out := slices.Clone(args)
	for i := 0; i < len(out); {
		switch {
		case out[i] == "--":
			return out
		case out[i] == "--token":
			out = slices.Delete(out, i, min(i+2, len(out)))
		case strings.HasPrefix(out[i], "--token="):
			out = slices.Delete(out, i, i+1)
		default:
			i++
		}
	}
	return out
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
		return nil, usage("--join and --token go together: \"gantry token create\" on a server prints both (--token-file or " + tokenVariable + " also hold a token)")
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
