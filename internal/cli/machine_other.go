//go:build !linux

package cli

import "github.com/spf13/cobra"

// machineCommands is empty: nodes run on Linux.
func (a *app) machineCommands() []*cobra.Command { return nil }
