package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Component is one part of the process.
type Component struct {
	Name string
	// Run works until ctx ends and waits for all it started. Ending earlier is a failure.
	Run func(ctx context.Context) error
	// Ready blocks until what comes after may use the component. Nil means at once.
	Ready func(ctx context.Context) error
}

// SuperviseOptions tunes Supervise. Logger is required.
type SuperviseOptions struct {
	Logger      *slog.Logger
	Steps       *Steps
	OnReady     func()        // called once, when every component is ready
	StopTimeout time.Duration // for each component; default 30s
}

// running is a component that was started.
type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned
	err    error         // of Run; read after done
}

// Supervise starts the components in order, each once the one before it is ready, and runs them until
// ctx ends or one of them fails. Then it stops them in reverse order, each before the one below it.
// A stop that was asked for is nil; otherwise the error is the failed component's, with its name.
func Supervise(ctx context.Context, opts SuperviseOptions, components ...Component) error {
	if opts.Logger == nil {
		return errors.New("lifecycle: SuperviseOptions.Logger is required")
	}
	opts.StopTimeout = cmp.Or(opts.StopTimeout, 30*time.Second)
	failed := make(chan *running, len(components))
	var started []*running
	err := startAll(ctx, opts, components, failed, &started)
	if err == nil && ctx.Err() == nil {
		if opts.OnReady != nil {
			opts.OnReady()
		}
		select {
		case <-ctx.Done():
		case r := <-failed:
			err = r.failure()
			opts.Logger.Error("component failed", "component", r.name, "err", err)
		}
	}
	return errors.Join(err, stopAll(opts, started))
}

func startAll(ctx context.Context, opts SuperviseOptions, components []Component, failed chan *running, started *[]*running) error {
	for _, c := range components {
		if ctx.Err() != nil {
			return nil
		}
		end := opts.Steps.Begin(c.Name, "ready")
		r := start(ctx, c, failed)
		*started = append(*started, r)
		err := awaitReady(ctx, c, failed)
		if ctx.Err() != nil {
			return nil // asked to stop while starting
		}
		end(err)
		if err != nil {
			return err
		}
	}
	return nil
}

// start runs c under a context of its own, which ends when c's turn to stop has come.
func start(ctx context.Context, c Component, failed chan<- *running) *running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{name: c.Name, cancel: cancel, done: make(chan struct{})}
	go func() {
		r.err = c.Run(ctx)
		early := ctx.Err() == nil
		close(r.done)
		if early {
			failed <- r
		}
	}()
	return r
}

// awaitReady waits for c, for the failure of any component, or for ctx.
func awaitReady(ctx context.Context, c Component, failed <-chan *running) error {
	if c.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- c.Ready(ctx) }()
	select {
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		return nil
	case r := <-failed:
		cancel()
		<-ready
		return r.failure()
	}
}

// failure is the error of a component that ended before it was asked to.
func (r *running) failure() error {
	if r.err == nil {
		return fmt.Errorf("%s: ended by itself", r.name)
	}
	return fmt.Errorf("%s: %w", r.name, r.err)
}

func stopAll(opts SuperviseOptions, started []*running) error {
	var problems []error
	for i := len(started) - 1; i >= 0; i-- {
		r := started[i]
		select {
		case <-r.done:
			r.cancel()
			continue // it failed; that is reported already
		default:
		}
		end := opts.Steps.Begin(r.name, "stopped")
		r.cancel()
		timer := time.NewTimer(opts.StopTimeout)
		var err error
		select {
		case <-r.done:
			if r.err != nil && !errors.Is(r.err, context.Canceled) {
				err = fmt.Errorf("stop %s: %w", r.name, r.err)
			}
		case <-timer.C:
			err = fmt.Errorf("%s has not stopped within %s", r.name, opts.StopTimeout)
		}
		timer.Stop()
		end(err)
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}
