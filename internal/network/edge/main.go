package edge

import (
	"context"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

// memoryLimit is where the runtime works harder to stay small; a table of 10,000 services
// takes 10 MB of it, 10,000 connections 200.
const memoryLimit = 256 << 20

// Main is the program gantry-edge: it reads the arguments, serves, and returns the exit code.
func Main(args []string) int {
	debug.SetGCPercent(50)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	opts := Options{Logger: log}
	flags := flag.NewFlagSet("gantry-edge", flag.ContinueOnError)
	flags.StringVar(&opts.Socket, "socket", "", "path of the control socket")
	flags.StringVar(&opts.StateDir, "state", "", "directory of the last good table")
	listen := flags.String("dns", "", "addresses for DNS, ADDR:PORT, separated by commas")
	flags.IntVar(&opts.UID, "uid", 0, "user and group to become; 0 stays")
	flags.StringVar(&opts.Build, "build", "", "told to clients: what this program is")
	flags.StringVar(&opts.ResolvConf, "resolv-conf", "/etc/resolv.conf", "names the servers to forward to")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	for _, text := range strings.Split(*listen, ",") {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			log.Error("bad flag -dns", "error", err)
			return 2
		}
		opts.Listen = append(opts.Listen, at)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if err := Run(ctx, opts); err != nil {
		log.Error("gantry-edge ends", "error", err)
		return 1
	}
	return 0
}
