package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/upgrade"
)

// checkSkew refuses to start a program on what a much newer one wrote. It writes nothing.
func (a *app) checkSkew(c config.Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	choice, err := upgrade.Dir(c.DataDir).Choose(self)
	if err != nil || choice.Run != "" { // the program that is to run looks itself
		return err
	}
	return withCode(exitUsage, upgrade.CheckData(c.DataDir, a.env.Version))
}

// becomeChosen makes this process the program that the machine runs, if that is another one.
func (a *app) becomeChosen(c config.Config) error {
	dir := upgrade.Dir(c.DataDir)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if choice, err := dir.Choose(self); err != nil || choice == (upgrade.Choice{}) {
		return err
	}
	lock, err := lifecycle.Acquire(c.DataDir)
	if _, running := lifecycle.AlreadyRunning(err); running {
		return nil // which is said soon
	}
	if err != nil {
		return err
	}
	choice, err := dir.Choose(self) // as it is when nobody else uses the data dir
	if err == nil {
		err = dir.Settle(choice)
	}
	if err = errors.Join(err, lock.Unlock()); err != nil || choice.Run == "" {
		return err
	}
	return upgrade.Exec(choice.Run, a.env.Args)
}

// programChange is what a running node and the change to another program have to do with each other.
type programChange struct {
	Changing

	dir    upgrade.Dir
	ctx    context.Context //nolint:containedctx // it ends with the program, as what runs does
	cancel context.CancelFunc
	asked  atomic.Bool
	trial  bool
}

func newProgramChange(ctx context.Context, dataDir string, args []string) *programChange {
	p := &programChange{dir: upgrade.Dir(dataDir)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.Changing = Changing{Args: args, Restart: func() {
		p.asked.Store(true)
		p.cancel()
	}}
	return p
}

// begin notes that this program writes the data dir, and reports whether it is on trial.
func (p *programChange) begin(version string) (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find this program: %w", err)
	}
	if p.trial, err = p.dir.OnTrial(self); err != nil {
		return false, err
	}
	return p.trial, upgrade.NoteData(string(p.dir), version)
}

// ready ends the trial.
func (p *programChange) ready(logger *slog.Logger) {
	if !p.trial {
		return
	}
	if err := errors.Join(p.dir.Confirm(), p.dir.Prune()); err != nil {
		logger.Warn("that this program works is not noted", "err", err)
	}
}

// stopped says that the program was stopped in good order: a trial is over then.
func (p *programChange) stopped() error {
	if !p.trial {
		return nil
	}
	return p.dir.GiveUp("it was stopped before it was ready")
}

// upgradeWatchCommand is the watchdog of a program on trial.
func (a *app) upgradeWatchCommand() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use: upgrade.WatchCommand, Short: "Bring the program before back when a new one does not work", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load(cmd, true)
			if err != nil {
				return err
			}
			return upgrade.Dir(c.DataDir).Watch(cmd.Context(), pid, args)
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "the process to watch")
	return cmd
}
