package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/telemetry"
	"gantry.dev/gantry/internal/upgrade"
)

// stopTimeout is how long "down" waits for the main process.
const stopTimeout = 2 * time.Minute

// machineCommands are the commands that change this machine.
func (a *app) machineCommands() []*cobra.Command {
	var commands []*cobra.Command
	if a.backend.Up != nil {
		commands = append(commands, a.upCommand(), a.upgradeWatchCommand())
	}
	if a.backend.Down != nil {
		commands = append(commands, a.downCommand(), a.uninstallCommand())
	}
	if a.backend.Doctor != nil {
		commands = append(commands, a.doctorCommand())
	}
	return commands
}

func (a *app) upCommand() *cobra.Command {
	var service bool
	var joining joinFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Start a node on this machine", GroupID: groupMachine, Args: exactArgs(),
		Long: "Start a node on this machine and run until it is stopped by a signal. Containers go on\n" +
			"when the node stops, and the next start takes them over; \"gantry down\" stops them too.\n\n" +
			"The first machine is a cluster by itself. With --join and --token, as \"gantry token create\" prints them on a\n" +
			"server, a machine becomes a worker of that server's cluster; later starts need neither.",
	}
	var names []string
	for _, key := range config.Keys() {
		if key.Name != config.KeyDataDir && key.Name != config.KeyKubeconfig { // the root command has these
			names = append(names, key.Name)
		}
	}
	config.Register(cmd.Flags(), names...)
	joining.register(cmd)
	cmd.Flags().BoolVar(&service, "service", false, "install and start a systemd unit, so that the node starts at boot")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.load(cmd, false)
		if err != nil {
			return err
		}
		if err := joining.find(a.getenv(tokenVariable)); err != nil {
			return err
		}
		request, err := joining.request()
		if err != nil {
			return err
		}
		if err := a.checkSkew(c); err != nil {
			return err
		}
		if err := checkMachine(c, "gantry up"); err != nil {
			return err
		}
		if cmd.Flags().Changed("token") {
			return a.hideToken(joining.token)
		}
		switch {
		case service && c.Detach:
			return usage("--service and --detach exclude each other: a service is in the background anyway")
		case service:
			return a.upService(cmd, c)
		case c.Detach:
			return a.upDetached(cmd.Context(), c)
		}
		return a.upHere(cmd.Context(), c, request)
	}
	return cmd
}

// hideToken begins this command again with the token where only root reads it: a command line is everybody's.
func (a *app) hideToken(token string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	args := append([]string{os.Args[0]}, withoutToken(a.env.Args)...)
	return a.become(self, args, setEnv(slices.Clone(a.env.Environ), tokenVariable, token))
}

// checkMachine is what can be checked before anything is changed.
func checkMachine(c config.Config, what string) error {
	if err := lifecycle.CheckRoot(what); err != nil {
		return err
	}
	return lifecycle.CheckDataDir(c.DataDir)
}

// checkPorts refuses ports that others listen on.
func checkPorts(c config.Config) error {
	node := c.NodeIP
	if !node.IsValid() {
		node = netip.IPv4Unspecified()
	}
	agent := lifecycle.CheckPort(netip.AddrPortFrom(node, c.AgentPort), "--"+config.KeyAgentPort)
	if member, there, err := join.ReadMembership(c.Path(join.MembershipFile)); err == nil && there && member.Role == join.Worker {
		return agent // the API is elsewhere
	}
	return errors.Join(
		lifecycle.CheckPort(c.Listen, "--"+config.KeyListen),
		agent,
	)
}

// upHere runs the node in this process, or in another program that this process becomes.
func (a *app) upHere(ctx context.Context, c config.Config, joining *JoinRequest) error {
	if err := a.becomeChosen(c); err != nil {
		return err
	}
	restart, err := a.upOnce(ctx, c, joining)
	if !restart {
		return err
	}
	if err != nil { // what did not stop in time ends with this program
		_, _ = fmt.Fprintf(a.env.Stderr, "gantry: stopping for the new program: %v\n", err)
	}
	return upgrade.Dir(c.DataDir).ExecNext(a.env.Args)
}

// upOnce runs the node until it is to stop, or to become another program (restart).
func (a *app) upOnce(ctx context.Context, c config.Config, joining *JoinRequest) (restart bool, err error) {
	starter, err := lifecycle.FindStarter()
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			starter.Failed(err)
		}
	}()
	if starter != nil {
		if err := os.Chdir("/"); err != nil { // a process in the background must not keep a folder busy
			return false, fmt.Errorf("leave the current folder: %w", err)
		}
	}
	ctx, stop := lifecycle.WithSignals(ctx, os.Exit)
	defer stop()
	lock, err := lifecycle.Acquire(c.DataDir)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	change := newProgramChange(ctx, c.DataDir, a.env.Args)
	ctx = change.ctx
	defer change.cancel()
	defer markStopping(ctx, lock)()
	if err := checkPorts(c); err != nil {
		return false, err
	}
	run := UpRequest{Config: c, Version: a.env.Version, Join: joining, Change: &change.Changing}
	if run.Identity, err = lifecycle.EnsureIdentity(c.DataDir, c.NodeName, c.Given(config.KeyNodeName), lifecycle.MachineID("/")); err != nil {
		return false, err
	}
	if run.Logger, err = telemetry.NewLogger(a.env.Stderr, c.LogFormat, c.LogLevel); err != nil {
		return false, err
	}
	run.Steps = lifecycle.NewSteps(a.env.Stderr)
	if starter != nil {
		run.Steps = lifecycle.NewSteps(starter)
	}
	if run.Trial, err = change.begin(a.env.Version); err != nil {
		return false, err
	}
	begun := time.Now()
	run.Ready = func() {
		run.Steps.Say("node %s ready after %s", run.Identity.Name, time.Since(begun).Round(time.Millisecond))
		change.ready(run.Logger)
		if err := lifecycle.NotifySystemd(lifecycle.SystemdReady); err != nil {
			run.Logger.Warn("systemd was not told", "err", err)
		}
		if starter == nil {
			a.greet(c)
		}
		starter.Ready()
	}
	err = a.backend.Up(ctx, run)
	restart = change.asked.Load()
	if err == nil && !restart {
		err = change.stopped()
	}
	return restart, err
}

// markStopping makes the lock say when ctx has ended. The result takes it back, or waits until it is done.
func markStopping(ctx context.Context, lock *lifecycle.Lock) func() {
	marked := make(chan struct{})
	undo := context.AfterFunc(ctx, func() {
		defer close(marked)
		_ = lock.Stopping() // without it "up" takes this process for one that goes on, no more
	})
	return func() {
		if !undo() {
			<-marked
		}
	}
}

// upDetached starts this program again in the background and waits until the node is ready. A node
// that runs already is fine: the caller has what it wants.
func (a *app) upDetached(ctx context.Context, c config.Config) error {
	waiting, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if _, err := lifecycle.AwaitStopped(waiting, c.DataDir); err != nil {
		return err
	}
	if pid, running, err := lifecycle.Holder(c.DataDir); err != nil {
		return err
	} else if running {
		_, _ = fmt.Fprintf(a.env.Stderr, "gantry runs already, process id %d\n", pid)
		a.greet(c)
		return nil
	}
	if err := checkPorts(c); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	ctx, stop := lifecycle.WithSignals(ctx, os.Exit)
	defer stop()
	// The last word wins, whatever flags, environment or file said.
	args := append(append([]string{}, a.env.Args...), "--"+config.KeyDetach+"=false")
	err = lifecycle.Detach(ctx, lifecycle.DetachOptions{
		Executable: self, Args: args, Env: a.env.Environ, LogPath: c.Path("log", "gantry.log"), Steps: lifecycle.NewSteps(a.env.Stderr),
	})
	if err != nil {
		return err
	}
	a.greet(c)
	return nil
}

// greet prints the address and the next command to try.
func (a *app) greet(c config.Config) {
	if member, there, err := join.ReadMembership(c.Path(join.MembershipFile)); err == nil && there && member.Role == join.Worker {
		_ = a.printf("this machine is a worker of the cluster of %s\ntry, on a server: gantry node ls\n", strings.Join(member.Servers, ", "))
		return
	}
	_ = a.printf("%s\ntry: gantry kubectl get nodes\n", c.APIURL())
}
