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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// options are what the command line says.
type options struct {
	bin         string // folder with gantry
	gantryBin   string // the program itself
	module      string // upstream's programs/go.mod
	cache       string
	only        []string
	gantryOnly  bool
	controlOnly bool
	rounds      int
	round       time.Duration
	workers     int
	idle        time.Duration
	jsonPath    string
	inside      bool
	defaults    bool
}

func main() {
	opts, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if opts.inside {
			err = inside(ctx, opts)
		} else {
			err = outside()
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode()) // the inner process has said why
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	opts := options{}
	var only string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.bin, "bin", os.Getenv("GANTRY_TEST_BIN"), "folder with the gantry program")
	flags.StringVar(&opts.module, "upstream", "upstream/programs", "folder of the module that pins upstream's programs")
	flags.StringVar(&opts.cache, "cache", "../.cache/upstream", "folder that keeps upstream's built programs")
	flags.StringVar(&only, "only", "", "parts to run, separated by commas (without it: all but "+partScale+", "+partLarge+", "+partGateway+", "+partApplication+" and "+partFailover+"; the last three run alone): "+strings.Join(parts(), ","))
	flags.BoolVar(&opts.gantryOnly, "gantry-only", false, "leave upstream out")
	flags.BoolVar(&opts.controlOnly, "no-node", false, "leave out what needs containers")
	flags.BoolVar(&opts.defaults, "defaults", false, "in "+partFailover+", also kill a machine of upstream with its default settings, which takes six minutes")
	flags.IntVar(&opts.rounds, "rounds", 3, "rounds of each operation")
	flags.DurationVar(&opts.round, "round", 4*time.Second, "length of a round")
	flags.IntVar(&opts.workers, "workers", 32, "requests at once")
	flags.DurationVar(&opts.idle, "idle", time.Minute, "how long the systems idle before their memory is read")
	flags.StringVar(&opts.jsonPath, "json", "", "file to write the results to")
	flags.BoolVar(&opts.inside, "inside", false, "set by the benchmark itself, in the namespaces it made")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	opts.only = strings.FieldsFunc(only, func(r rune) bool { return r == ',' || r == ' ' })
	for _, part := range opts.only {
		if !slices.Contains(parts(), part) {
			return options{}, fmt.Errorf("%q is no part; there are %s", part, strings.Join(parts(), ", "))
		}
	}
	opts.gantryBin = opts.bin + "/gantry"
	switch {
	case opts.bin == "":
		return options{}, errors.New("say where gantry is: -bin FOLDER or GANTRY_TEST_BIN")
	case opts.rounds < 1 || opts.round < 100*time.Millisecond || opts.workers < 1 || opts.workers > 256:
		return options{}, errors.New("-rounds is 1 or more, -round 100ms or more, -workers 1 to 256")
	}
	return opts, nil
}

// runs reports whether a part was asked for.
func (o options) runs(part string) bool {
	return len(o.only) == 0 || slices.Contains(o.only, part)
}

// needsTogether reports whether any part was asked for that has both systems running side by side.
func (o options) needsTogether() bool {
	return len(o.only) == 0 || slices.ContainsFunc(o.only, func(part string) bool { return part != partReady && part != partScale && part != partLarge })
}

// outside runs this program again in namespaces of its own, so that neither the nodes' links, routes
// and rules nor their mounts touch the host.
func outside() error {
	if os.Getuid() != 0 {
		return errors.New("root is needed: a node makes namespaces and containers")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	signal.Ignore(os.Interrupt) // the terminal sends it to both; the inner process cleans up
	cmd := exec.Command(self, append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	return cmd.Run()
}

// inside prepares the namespaces and runs the benchmark in them.
func inside(ctx context.Context, opts options) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := makeNetwork(); err != nil {
		return err
	}
	return run(ctx, opts, os.Stdout, os.Stderr)
}

// makeNetwork gives the namespace a loopback link and one link with an address and the default route.
func makeNetwork() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback link: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bench0"}, PeerName: "bench1"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a link: %w", err)
	}
	peer, err := netlink.LinkByName("bench1")
	if err != nil {
		return fmt.Errorf("find the link's peer: %w", err)
	}
	for _, link := range []netlink.Link{loopback, peer, veth} {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
		}
	}
	address, err := netlink.ParseAddr("10.77.0.2/24")
	if err != nil {
		return fmt.Errorf("read the node's address: %w", err)
	}
	if err := netlink.AddrAdd(veth, address); err != nil {
		return fmt.Errorf("add the node's address: %w", err)
	}
	gateway := []byte{10, 77, 0, 1}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Attrs().Index, Gw: gateway}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}
