//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"gantry.dev/gantry/test/hosts"
)

// options are what the command line says.
type options struct {
	bin      string // folder with gantry
	nodes    int
	servers  int
	pods     int // a node
	duration time.Duration
	every    time.Duration // between two kills
	away     time.Duration // how long a killed machine is off, at most
	bound    time.Duration // within which a lost pod runs again
	load     bool
	workers  int
	seed     uint64
	json     string
	inside   bool
}

func main() {
	opts, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		var here bool
		if here, err = hosts.Inside(opts.inside); here {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			err = run(ctx, opts, os.Stdout, os.Stderr)
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode()) // the inner process has said why
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintf(os.Stderr, "fleet: %v\n", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	opts := options{}
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.bin, "bin", os.Getenv("GANTRY_TEST_BIN"), "folder with the gantry program")
	flags.IntVar(&opts.nodes, "nodes", 100, "simulated machines")
	flags.IntVar(&opts.servers, "servers", 3, "real servers")
	flags.IntVar(&opts.pods, "pods", 10, "pods a simulated machine")
	flags.DurationVar(&opts.duration, "duration", 10*time.Minute, "how long machines are killed, or servers loaded")
	flags.DurationVar(&opts.every, "every", time.Second, "time between two kills")
	flags.DurationVar(&opts.away, "away", 20*time.Second, "longest time that a killed machine is off; the shortest is a tenth")
	flags.DurationVar(&opts.bound, "bound", 5*time.Second, "time within which a lost pod must run again")
	flags.BoolVar(&opts.load, "load", false, "kill nothing, load the servers, and fail when a machine is taken for dead")
	flags.IntVar(&opts.workers, "workers", 32, "requests at once with -load")
	flags.Uint64Var(&opts.seed, "seed", 1, "seed of which machines are killed, and when they come back")
	flags.StringVar(&opts.json, "json", "", "file to write the results to")
	flags.BoolVar(&opts.inside, "inside", false, "set by the program itself, in the namespaces it made")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case opts.bin == "":
		return options{}, errors.New("say where gantry is: -bin FOLDER or GANTRY_TEST_BIN")
	case opts.nodes < 2 || opts.nodes > 5000 || opts.servers < 1 || opts.servers > 5 || opts.pods < 1 || opts.pods > 100:
		return options{}, errors.New("-nodes is 2 to 5000, -servers 1 to 5, -pods 1 to 100")
	case opts.every <= 0 || opts.away <= 0 || opts.bound <= 0 || opts.duration <= 0 || opts.workers < 1:
		return options{}, errors.New("-every, -away, -bound, -duration and -workers are more than nothing")
	}
	return opts, nil
}
