package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/telemetry"
)

// openBackup opens a backup: a file, one in a store of objects, or - for standard input.
func (a *app) openBackup(ctx context.Context, where string) (io.ReadCloser, error) {
	switch {
	case where == "-":
		return io.NopCloser(a.env.Stdin), nil
	case backup.IsRemote(where):
		folder, name := backup.Split(where)
		place, err := backup.Open(folder, backup.CredentialsOf(a.getenv))
		if err != nil {
			return nil, usage("%w", err)
		}
		return place.Open(ctx, name)
	}
	file, err := os.Open(where)
	if err != nil {
		return nil, usage("open the backup: %w", err)
	}
	return file, nil
}

// recoveryKey reads the key from a file, the environment, or by a question. It is never an argument.
func (a *app) recoveryKey(file, source string) (string, error) {
	if key := a.getenv(recoveryKeyVariable); key != "" && file == "" {
		return key, nil
	}
	if file == "" && source == "-" {
		return "", usage("the backup comes from standard input: say --recovery-key-file FILE or set %s", recoveryKeyVariable)
	}
	if file == "" && !a.env.IsTerminal {
		return "", usage("which recovery key? Say --recovery-key-file FILE or set %s", recoveryKeyVariable)
	}
	key, err := a.readSecret("recovery key", file)
	return string(key), err
}

// refused gives errors of a backup that are the caller's own an exit code, and a cure.
func refused(err error) error {
	if errors.Is(err, backup.ErrKey) {
		return usage("%w", err)
	}
	return err
}

func (a *app) backupVerifyCommand() *cobra.Command {
	var keyFile, scratch string
	cmd := &cobra.Command{
		Use: "verify FILE", Short: "Start a backup in a scratch place and say what is there; the cluster is not touched", Args: exactArgs("the backup's FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := a.recoveryKey(keyFile, args[0])
			if err != nil {
				return err
			}
			source, err := a.openBackup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer func() { _ = source.Close() }()
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			logger, err := telemetry.NewLogger(a.env.Stderr, c.LogFormat, max(c.LogLevel, slog.LevelWarn))
			if err != nil {
				return err
			}
			ctx, stop := lifecycle.WithSignals(cmd.Context(), os.Exit)
			defer stop()
			result, err := a.backend.Backups.Verify(ctx, VerifyRequest{
				Source: source, Secret: secret, Scratch: scratch, Steps: lifecycle.NewSteps(a.env.Stderr), Logger: logger,
			})
			if err != nil {
				return refused(err)
			}
			if a.json {
				return a.printJSON(result)
			}
			return a.printVerified(&result)
		},
	}
	cmd.Flags().StringVar(&keyFile, "recovery-key-file", "", "file of the recovery key (default: "+recoveryKeyVariable+", or a question)")
	cmd.Flags().StringVar(&scratch, "scratch", "", "folder with room for the whole backup (default: the system's for temporary files)")
	return cmd
}

func (a *app) printVerified(result *VerifyResult) error {
	m := &result.Manifest
	if err := a.printf("the backup is whole: taken %s on %s by Gantry %s\n", m.Taken.Format("2006-01-02 15:04:05 MST"), m.Server, m.Gantry); err != nil {
		return err
	}
	kinds := make([]string, 0, len(result.Objects))
	for kind := range result.Objects {
		kinds = append(kinds, kind)
	}
	slices.SortFunc(kinds, func(x, y string) int {
		if result.Objects[x] != result.Objects[y] {
			return result.Objects[y] - result.Objects[x]
		}
		return strings.Compare(x, y)
	})
	rows := make([][]string, 0, len(kinds))
	for _, kind := range kinds {
		rows = append(rows, []string{fmt.Sprint(result.Objects[kind]), kind})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	return a.printManifest(m)
}

func (a *app) restoreCommand() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make an empty data dir the cluster of a backup", GroupID: groupCluster, Args: exactArgs("the backup's FILE"),
		Long: "Make an empty data dir the cluster of a backup: a file, s3://BUCKET/PREFIX/NAME, or - for standard input. Then \"gantry up\" starts it, and other\n" +
			"machines join it. Nothing is changed if the backup is broken.",
	}
	for _, key := range []string{config.KeyNodeName, config.KeyPodCIDR, config.KeyServiceCIDR, config.KeyClusterDomain} {
		config.Register(cmd.Flags(), key)
	}
	cmd.Flags().StringVar(&keyFile, "recovery-key-file", "", "file of the recovery key (default: "+recoveryKeyVariable+", or a question)")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		c, err := a.load(cmd, false)
		if err != nil {
			return err
		}
		if err := checkMachine(c, "gantry restore"); err != nil {
			return err
		}
		secret, err := a.recoveryKey(keyFile, args[0])
		if err != nil {
			return err
		}
		source, err := a.openBackup(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		defer func() { _ = source.Close() }()
		logger, err := telemetry.NewLogger(a.env.Stderr, c.LogFormat, max(c.LogLevel, slog.LevelWarn))
		if err != nil {
			return err
		}
		ctx, stop := lifecycle.WithSignals(cmd.Context(), os.Exit)
		defer stop()
		lock, err := lifecycle.Acquire(c.DataDir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Unlock()) }()
		result, err := a.backend.Backups.Restore(ctx, RestoreRequest{
			Config: c, Source: source, Secret: secret, Steps: lifecycle.NewSteps(a.env.Stderr), Logger: logger,
		})
		if err != nil {
			return refused(err)
		}
		if a.json {
			return a.printJSON(result)
		}
		return a.printRestored(&result, c.DataDir)
	}
	return cmd
}

func (a *app) printRestored(result *RestoreResult, dataDir string) error {
	err := a.printf("restored the backup of %s into %s; this machine is the node %s\n",
		result.Manifest.Taken.Format("2006-01-02 15:04:05 MST"), dataDir, result.NodeName)
	if err != nil {
		return err
	}
	rows := make([][]string, 0, len(result.Moved))
	for _, moved := range result.Moved {
		rows = append(rows, []string{"changed", moved})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	if err := a.printManifest(&result.Manifest); err != nil {
		return err
	}
	if len(result.Manifest.Dumps) > 0 {
		_, _ = fmt.Fprintln(a.env.Stderr, "the dumps are loaded when their addons run")
	}
	_, _ = fmt.Fprintln(a.env.Stderr, "start it: gantry up")
	return nil
}
