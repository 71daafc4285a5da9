//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// partApplication measures what a developer waits for: an empty machine to a served application, a change of one line, and the
// first answer of an application that sleeps. It runs when it alone is named, and needs a go command.
const partApplication = "platform"

const (
	applicationStart = 50 * time.Millisecond // what the program takes before it listens
	applicationIdle  = 3 * time.Second       // until it sleeps
	sleepTimeout     = 2 * time.Minute
	wakeUps          = 5 // in a round
)

// applicationSource is a program that takes applicationStart to start.
const applicationSource = `package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"
)

const version = "1"

func main() {
	began := strconv.FormatInt(time.Now().UnixNano(), 10)
	time.Sleep(%d * time.Millisecond)
	http.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Bench-Began", began)
		_, _ = io.WriteString(w, version)
	})
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
`

// applicationBench is one run of the part.
type applicationBench struct {
	opts   options
	dir    string // of everything
	source string
	client *http.Client
	watch  wakeWatch
}

// applicationOutcome is one round.
type applicationOutcome struct {
	served, redeploy time.Duration
	wakes            []wakeTrace
}

// measureApplication takes rounds of a fresh cluster and prints their medians beside what is allowed.
func measureApplication(ctx context.Context, opts options, out, progress io.Writer) error {
	var served, redeploy, wake []time.Duration
	var wakes []wakeTrace
	for round := range opts.rounds {
		_, _ = fmt.Fprintf(progress, "bench: platform, round %d of %d\n", round+1, opts.rounds)
		outcome, err := applicationRound(ctx, opts, round == 0)
		if err != nil {
			return err
		}
		served, redeploy, wakes = append(served, outcome.served), append(redeploy, outcome.redeploy), append(wakes, outcome.wakes...)
	}
	for _, trace := range wakes {
		wake = append(wake, trace[stepAnswered].Sub(trace[stepSent]))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "platform\tmedian\tworst\tallowed")
	for _, row := range []struct {
		name  string
		took  []time.Duration
		limit time.Duration
	}{
		{"empty machine to the first answer by HTTPS (up, deploy)", served, 15 * time.Second},
		{"one changed line to its first answer (deploy)", redeploy, 5 * time.Second},
		{"from zero to the first answer", wake, 300 * time.Millisecond},
	} {
		slices.Sort(row.took)
		_, _ = fmt.Fprintf(w, "%s\t%.2fs\t%.2fs\t%.2fs\n", row.name, row.took[len(row.took)/2].Seconds(), row.took[len(row.took)-1].Seconds(), row.limit.Seconds())
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return writeSplit(out, wakes)
}

// applicationRound is one round. warm compiles the program once before, so that the cache is not measured.
func applicationRound(ctx context.Context, opts options, warm bool) (outcome applicationOutcome, err error) {
	dir, err := os.MkdirTemp("", "gapp")
	if err != nil {
		return outcome, fmt.Errorf("make a folder: %w", err)
	}
	b := &applicationBench{opts: opts, dir: dir, source: filepath.Join(dir, "bench")}
	defer func() { err = errors.Join(err, purge(opts, dir), os.RemoveAll(dir)) }()
	b.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "10.77.0.2:443")
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the time is measured, not the trust
	}}
	if err := b.write("1"); err != nil {
		return outcome, err
	}
	if warm {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", os.DevNull, ".")
		cmd.Dir, cmd.Env = b.source, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return outcome, fmt.Errorf("compile the application: %w\n%s", err, text)
		}
	}
	begun := time.Now()
	if err := b.gantry(ctx, "up", "--detach"); err != nil {
		return outcome, err
	}
	if err := b.deploy(ctx, "1"); err != nil {
		return outcome, err
	}
	outcome.served = time.Since(begun)
	if err := b.write("2"); err != nil {
		return outcome, err
	}
	begun = time.Now()
	if err := b.deploy(ctx, "2"); err != nil {
		return outcome, err
	}
	outcome.redeploy = time.Since(begun)
	stop, err := b.watch.follow(ctx, dir)
	if err != nil {
		return outcome, err
	}
	defer stop()
	for range wakeUps {
		trace, err := b.wake(ctx)
		if err != nil {
			return outcome, err
		}
		outcome.wakes = append(outcome.wakes, trace)
	}
	return outcome, nil
}

// write writes the application's source.
func (b *applicationBench) write(version string) error {
	text := strings.Replace(fmt.Sprintf(applicationSource, applicationStart.Milliseconds()), `version = "1"`, fmt.Sprintf("version = %q", version), 1)
	err := os.MkdirAll(b.source, 0o755)
	for name, content := range map[string]string{
		"main.go": text, "go.mod": "module bench\n\ngo 1.26\n", "gantry.yaml": fmt.Sprintf("scale: {min: 0, max: 1, idle: %s}\n", applicationIdle),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(b.source, name), []byte(content), 0o644))
	}
	if err != nil {
		return fmt.Errorf("write the application: %w", err)
	}
	return nil
}

func (b *applicationBench) gantry(ctx context.Context, args ...string) error {
	program, err := filepath.Abs(b.opts.gantryBin)
	if err != nil {
		return fmt.Errorf("find gantry: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--data-dir", filepath.Join(b.dir, "data")}, args...)...)
	cmd.Dir = b.source
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+b.dir, "KUBECONFIG="+filepath.Join(b.dir, "kubeconfig"))
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gantry %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// deploy deploys and waits until the version answers.
func (b *applicationBench) deploy(ctx context.Context, version string) error {
	if err := b.gantry(ctx, "deploy"); err != nil {
		return err
	}
	return await(ctx, func() error { return nil }, func(ctx context.Context) error {
		got, _, err := b.ask(ctx)
		if err == nil && got != version {
			err = fmt.Errorf("version %q answers, not %q", got, version)
		}
		return err
	})
}

// ask returns the answer's body and head.
func (b *applicationBench) ask(ctx context.Context) (string, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://bench.localhost/", nil)
	if err != nil {
		return "", nil, fmt.Errorf("make a request: %w", err)
	}
	response, err := b.client.Do(request)
	if err != nil {
		return "", nil, fmt.Errorf("ask the application: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), response.Header, err
}

// wake waits until the application sleeps, and measures the first request.
func (b *applicationBench) wake(ctx context.Context) (trace wakeTrace, err error) {
	err = awaitFor(ctx, sleepTimeout, func() error { return nil }, func(context.Context) error {
		running, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, path := range running {
			if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), "/app/bench\x00") {
				return errors.New("the application is awake")
			}
		}
		return nil
	})
	if err != nil {
		return trace, fmt.Errorf("wait for the application to sleep: %w", err)
	}
	b.watch.begin(time.Now())
	_, head, err := b.ask(ctx)
	trace = b.watch.end(time.Now())
	if err != nil {
		return trace, err
	}
	trace[stepBegan], err = began(head.Get("Bench-Began"))
	return trace, err
}
