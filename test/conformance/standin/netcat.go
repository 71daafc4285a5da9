package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

type netcatOptions struct {
	network, host, port string
	localPort           int
	wait                time.Duration // to connect, and for more to come
	verbose, scan       bool
}

// netcat is OpenBSD's nc as a client: what it reads goes to the other side, and it ends when that
// side does or is silent for the time of -w. To listen it becomes busybox's.
func netcat(args []string, s streams) error {
	if slices.ContainsFunc(args, func(a string) bool { return a == "-l" || a == "-e" || a == "-lk" }) {
		return become(busybox, append([]string{"nc"}, args...))
	}
	o, err := parseNetcat(args)
	if err != nil {
		return err
	}
	dialer := &net.Dialer{Timeout: o.wait}
	switch {
	case o.localPort == 0:
	case o.network == "udp":
		dialer.LocalAddr = &net.UDPAddr{Port: o.localPort}
	default:
		dialer.LocalAddr = &net.TCPAddr{Port: o.localPort}
	}
	conn, err := dialer.Dial(o.network, net.JoinHostPort(o.host, o.port))
	if err != nil {
		return fmt.Errorf("connect to %s port %s (%s) failed: %w", o.host, o.port, o.network, err)
	}
	defer func() { _ = conn.Close() }()
	if o.verbose {
		_, _ = fmt.Fprintf(s.err, "Connection to %s %s port [%s/*] succeeded!\n", o.host, o.port, o.network)
	}
	if o.scan {
		return nil
	}
	go func() { _, _ = io.Copy(conn, s.in) }() // ends with the program, or with the connection
	return o.receive(conn, s.out)
}

// receive prints what comes until the end, or until nothing came for a while.
func (o netcatOptions) receive(conn net.Conn, out io.Writer) error {
	buffer := make([]byte, 64<<10)
	for {
		if o.wait > 0 {
			_ = conn.SetReadDeadline(time.Now().Add(o.wait))
		}
		n, err := conn.Read(buffer)
		_, _ = out.Write(buffer[:n])
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return fmt.Errorf("read from %s: %w", o.host, err)
		}
	}
}

func parseNetcat(args []string) (netcatOptions, error) {
	o := netcatOptions{network: "tcp"}
	var rest []string
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; arg {
		case "-t":
			o.network = "tcp"
		case "-u":
			o.network = "udp"
		case "-v":
			o.verbose = true
		case "-z", "-vz", "-zv":
			o.scan, o.verbose = true, o.verbose || arg != "-z"
		case "-w", "-p":
			i++
			if i == len(args) {
				return o, fmt.Errorf("%s lacks a number", arg)
			}
			number, err := strconv.Atoi(args[i])
			if err != nil {
				return o, fmt.Errorf("%s: %w", arg, err)
			}
			if arg == "-w" {
				o.wait = time.Duration(number) * time.Second
			} else {
				o.localPort = number
			}
		default:
			if arg[:min(1, len(arg))] == "-" {
				return o, fmt.Errorf("unknown flag %s", arg)
			}
			rest = append(rest, arg)
		}
	}
	if len(rest) != 2 {
		return o, errors.New("a host and a port are needed")
	}
	o.host, o.port = rest[0], rest[1]
	return o, nil
}
