package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// tunnelTries is how often another port is tried when one was taken meanwhile.
const tunnelTries = 5

// parseSSH reads ssh://USER@HOST[:PORT][/DATADIR].
func parseSSH(target string) (*sshPlace, error) {
	u, err := url.Parse(target)
	if err != nil || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, usage("%q is not like ssh://root@HOST or ssh://root@HOST:PORT", target)
	}
	place := &sshPlace{User: u.User.Username(), Host: u.Hostname(), Port: u.Port(), DataDir: strings.TrimSuffix(u.Path, "/")}
	if _, password := u.User.Password(); password {
		return nil, usage("a password is no part of the address; ssh asks for it, and a key is better")
	}
	if strings.HasPrefix(place.Host, "-") || strings.HasPrefix(place.User, "-") { // ssh would read them as options
		return nil, usage("%q is not like ssh://root@HOST", target)
	}
	return place, nil
}

// String says where, as login takes it.
func (p *sshPlace) String() string {
	u := url.URL{Scheme: "ssh", Host: p.Host, Path: p.DataDir}
	if p.User != "" {
		u.User = url.User(p.User)
	}
	if p.Port != "" {
		u.Host = net.JoinHostPort(p.Host, p.Port)
	}
	return u.String()
}

// sshVariable names the program in the place of ssh. It is the command line's alone: settings refuse variables that they do not know.
const sshVariable = "GANTRY_SSH_COMMAND"

// settings is the environment as settings read it.
func (a *app) settings() []string {
	return slices.DeleteFunc(slices.Clone(a.env.Environ), func(entry string) bool {
		return strings.HasPrefix(entry, sshVariable+"=") || strings.HasPrefix(entry, recoveryKeyVariable+"=") || strings.HasPrefix(entry, tokenVariable+"=")
	})
}

// sshCommand runs the system's ssh, so that keys, agent, settings and known hosts are those that the user has. Without a terminal it
// asks nothing. GANTRY_SSH_COMMAND names another program with arguments, as GIT_SSH_COMMAND does for git.
func (a *app) sshCommand(ctx context.Context, place *sshPlace, options ...string) *exec.Cmd {
	words := strings.Fields(cmp.Or(a.getenv(sshVariable), "ssh"))
	args := append(words[1:], "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
	if !a.env.IsTerminal {
		args = append(args, "-o", "BatchMode=yes")
	}
	if place.Port != "" {
		args = append(args, "-p", place.Port)
	}
	if place.User != "" {
		args = append(args, "-l", place.User)
	}
	cmd := exec.CommandContext(ctx, words[0], append(args, options...)...)
	cmd.Env = a.env.Environ
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// overSSH runs a command there and returns what it printed.
func (a *app) overSSH(ctx context.Context, place *sshPlace, command string) (string, error) {
	cmd := a.sshCommand(ctx, place, "--", place.Host, command)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", sshError(place, err, problem.String())
	}
	return out.String(), nil
}

// sshError says what went wrong, and what to do.
func sshError(place *sshPlace, err error, said string) error {
	said = strings.TrimSpace(said)
	target := strings.TrimPrefix(place.String(), "ssh://")
	if errors.Is(err, exec.ErrNotFound) {
		return usage("there is no ssh on this machine: install OpenSSH's client")
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case strings.Contains(said, "REMOTE HOST IDENTIFICATION HAS CHANGED"):
		return withCode(exitUnreachable, fmt.Errorf("the key of %s is not the one that is known: it was made anew, or another machine answers\n%s", place.Host, said))
	case strings.Contains(said, "Host key verification failed"):
		return withCode(exitUnreachable, fmt.Errorf("the key of %s is not known yet\n→ look at it and accept it once: ssh %s true", place.Host, sshWords(place)))
	case strings.Contains(said, "Permission denied"):
		return withCode(exitUnreachable, fmt.Errorf("%s does not let you in: %s\n→ try it: ssh %s true", target, lastLine(said), sshWords(place)))
	case exited && exit.ExitCode() == 127:
		return withCode(exitUnreachable, fmt.Errorf("there is no gantry on %s\n→ install it there, and start it: gantry up --service", place.Host))
	case exited && exit.ExitCode() == 255:
		return withCode(exitUnreachable, fmt.Errorf("%s is not reached by ssh: %s", target, lastLine(said)))
	}
	return withCode(exitUnreachable, fmt.Errorf("gantry on %s: %s", place.Host, cmp.Or(said, err.Error())))
}

func sshWords(p *sshPlace) string {
	out := p.Host
	if p.User != "" {
		out = p.User + "@" + out
	}
	if p.Port != "" {
		out = "-p " + p.Port + " " + out
	}
	return out
}

func lastLine(text string) string {
	return text[strings.LastIndex(text, "\n")+1:]
}

// throughSSH leads a cluster's connections through SSH for as long as this command runs.
func (a *app) throughSSH(ctx context.Context, place *sshPlace, config *rest.Config) error {
	server, err := url.Parse(config.Host)
	if err != nil || server.Hostname() == "" {
		return usage("the context's server %q is no address", config.Host)
	}
	target := net.JoinHostPort(server.Hostname(), cmp.Or(server.Port(), "443"))
	local, err := a.tunnel(ctx, place, target)
	if err != nil {
		return err
	}
	config.ServerName = cmp.Or(config.ServerName, server.Hostname()) // the certificate is the server's, whatever we dial
	server.Host = local
	config.Host = server.String()
	return nil
}

// tunnel begins a forward from a port of this machine and returns its address when it is there. Main ends it.
func (a *app) tunnel(ctx context.Context, place *sshPlace, target string) (string, error) {
	var err error
	for range tunnelTries {
		var local string
		if local, err = freePort(ctx); err != nil {
			return "", err
		}
		var taken bool
		if taken, err = a.forward(ctx, place, local, target); err == nil {
			return local, nil
		}
		if !taken {
			break
		}
	}
	return "", err
}

// forward runs ssh until this command ends. taken says that the port was not free.
func (a *app) forward(ctx context.Context, place *sshPlace, local, target string) (taken bool, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := a.sshCommand(ctx, place, "-N", "-T", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none", "-L", local+":"+target, "--", place.Host)
	said := &tail{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		cancel()
		return false, sshError(place, err, "")
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() {
		cancel()
		<-ended
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			cancel()
			text := said.String()
			return strings.Contains(text, "Address already in use") || strings.Contains(text, "cannot listen to port"), sshError(place, err, text)
		case <-tick.C:
		}
		if connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", local); err == nil {
			_ = connection.Close()
			a.closers = append(a.closers, stop)
			return false, nil
		}
	}
}

// freePort is a port of the loopback that nobody listens on just now.
func freePort(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port for the connection: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return "127.0.0.1:" + strconv.Itoa(listener.Addr().(*net.TCPAddr).Port), nil
}

// tail keeps the beginning of what a program says, a few kilobytes at most.
type tail struct {
	mu   sync.Mutex
	text bytes.Buffer
}

var _ io.Writer = (*tail)(nil)

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 8<<10 - t.text.Len(); room > 0 {
		t.text.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}
