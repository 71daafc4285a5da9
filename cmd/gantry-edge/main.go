// Gantry-edge holds a node's listening sockets while gantry itself comes and goes. gantry
// starts it; see package edge.
package main

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

	"gantry.dev/gantry/internal/network/edge"
)

func main() {
	debug.SetGCPercent(50)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(96 << 20)
	}
	var opts edge.Options
	flag.StringVar(&opts.Socket, "socket", "", "path of the control socket")
	flag.StringVar(&opts.StateDir, "state", "", "directory of the last good table")
	listen := flag.String("dns", "", "addresses for DNS, ADDR:PORT, separated by commas")
	flag.IntVar(&opts.UID, "uid", 0, "user and group to become; 0 stays")
	flag.StringVar(&opts.Build, "build", "", "told to clients: what this program is")
	flag.StringVar(&opts.ResolvConf, "resolv-conf", "/etc/resolv.conf", "names the servers to forward to")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	opts.Logger = log
	for _, text := range strings.Split(*listen, ",") {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			log.Error("bad flag -dns", "error", err)
			os.Exit(2)
		}
		opts.Listen = append(opts.Listen, at)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if err := edge.Run(ctx, opts); err != nil {
		log.Error("gantry-edge ends", "error", err)
		stop()
		os.Exit(1)
	}
}
