package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/telemetry"
)

func (a *app) downCommand() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the node on this machine, its containers too", GroupID: groupMachine, Args: exactArgs(),
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "also remove the data dir; the cluster's state is lost")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.load(cmd, true)
		if err != nil {
			return err
		}
		if err := lifecycle.CheckRoot("gantry down"); err != nil {
			return err
		}
		if _, err := os.Stat(c.DataDir); errors.Is(err, os.ErrNotExist) {
			_, _ = fmt.Fprintf(a.env.Stderr, "there is no node in %s\n", c.DataDir)
			return nil
		}
		if purge {
			if err := a.confirm("remove " + c.DataDir + " and the cluster's state in it"); err != nil {
				return err
			}
		}
		return a.down(cmd.Context(), c, purge)
	}
	return cmd
}

// down stops the main process, then what it left running, then removes the data if asked to.
func (a *app) down(ctx context.Context, c config.Config, purge bool) (err error) {
	ctx, stopSignals := lifecycle.WithSignals(ctx, os.Exit)
	defer stopSignals()
	steps := lifecycle.NewSteps(a.env.Stderr)
	if err := stopMain(ctx, c, steps); err != nil {
		return err
	}
	lock, err := lifecycle.Acquire(c.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	logger, err := telemetry.NewLogger(a.env.Stderr, c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	if err := a.backend.Down(ctx, DownRequest{Config: c, Steps: steps, Logger: logger}); err != nil {
		return err
	}
	if !purge {
		return nil
	}
	end := steps.Begin("data", "removed")
	err = lifecycle.Purge(c.DataDir)
	end(err)
	if err == nil && filepath.Dir(c.Kubeconfig) != c.DataDir {
		if err = os.Remove(c.Kubeconfig); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return err
}

func stopMain(ctx context.Context, c config.Config, steps *lifecycle.Steps) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	end := steps.Begin("gantry", "stopped")
	if err := stopService(ctx); err != nil { // else systemd would start it again
		return err
	}
	was, err := lifecycle.Terminate(ctx, c.DataDir)
	if was || err != nil {
		end(err)
	}
	return err
}

func (a *app) uninstallCommand() *cobra.Command {
	return &cobra.Command{
		Use: "uninstall", Short: "Remove every trace of Gantry from this machine but the program itself", GroupID: groupMachine, Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			if err := lifecycle.CheckRoot("gantry uninstall"); err != nil {
				return err
			}
			if err := a.confirm("remove the node, its data in " + c.DataDir + ", the service and the kubeconfig entry"); err != nil {
				return err
			}
			if err := removeService(cmd.Context()); err != nil {
				return err
			}
			if _, err := os.Stat(c.DataDir); err == nil {
				if err := a.down(cmd.Context(), c, true); err != nil {
					return err
				}
			}
			removed, err := removeFromUserKubeconfig(a.userKubeconfig())
			if err != nil {
				return err
			}
			if removed {
				_, _ = fmt.Fprintf(a.env.Stderr, "removed the entry from %s\n", a.userKubeconfig())
			}
			return nil
		},
	}
}
