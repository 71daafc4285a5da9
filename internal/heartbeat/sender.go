package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Server takes beats. Beat returns when the server has answered, or when timeout has passed.
type Server interface {
	// Name tells servers apart, such as "192.0.2.1:6443".
	Name() string
	Beat(ctx context.Context, beat Beat, timeout time.Duration) (Answer, error)
	// Close gives up what the server holds, such as a connection. Beat may be called again.
	Close()
}

// Options configures a Sender.
type Options struct {
	Node    string // required
	BootID  string
	Every   time.Duration // default Every
	Timeout time.Duration // of one beat; default 500ms: a link that was away for a moment is tried anew that often
	// Servers lists where beats go; it is asked before each round. Required.
	Servers func() []Server
	// Leaving says what beats say when Run ends; default LeavingRestart.
	Leaving func() string
	// Fence says what the node's fenced pods do, as Beat.FenceMillis; nil: there are none.
	Fence func() time.Duration
	// Answered is told of each answer, with the beat it belongs to and when that was begun to be sent, and must be
	// quick; nil ignores them.
	Answered func(answer Answer, beat Beat, sent time.Duration)
	// Heard is told when a server has not answered for SilentAfter, and when one that had not answers again, and must be quick;
	// nil ignores that. server is its Name.
	Heard func(server string, heard bool)
	// Clock is the time that deadlines are counted in; default BootClock.
	Clock  func() time.Duration
	Logger *slog.Logger
}

// Sender sends a node's beats to all servers.
type Sender struct{ opts Options }

// NewSender checks opts and returns a Sender that has started nothing; call Run.
func NewSender(opts Options) (*Sender, error) {
	if opts.Node == "" || opts.Servers == nil {
		return nil, errors.New("heartbeat: a sender needs Node and Servers")
	}
	opts.Every = cmp.Or(opts.Every, Every)
	opts.Timeout = cmp.Or(opts.Timeout, 500*time.Millisecond)
	if opts.Leaving == nil {
		opts.Leaving = func() string { return LeavingRestart }
	}
	if opts.Fence == nil {
		opts.Fence = func() time.Duration { return 0 }
	}
	if opts.Answered == nil {
		opts.Answered = func(Answer, Beat, time.Duration) {}
	}
	if opts.Heard == nil {
		opts.Heard = func(string, bool) {}
	}
	if opts.Clock == nil {
		opts.Clock = BootClock
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sender{opts: opts}, nil
}

// SilentAfter is how long a server may leave beats without an answer before it counts as silent: so long that two beats in a row
// may be lost.
const SilentAfter = time.Second

// refresh is how often the list of servers is asked for.
const refresh = time.Second

// Run sends until ctx ends, then announces a restart to all servers. It returns when that was answered or has timed out.
func (s *Sender) Run(ctx context.Context) error {
	lines := map[string]*line{}
	var sending sync.WaitGroup
	defer sending.Wait()
	ticker := time.NewTicker(refresh)
	defer ticker.Stop()
	for {
		servers := s.opts.Servers()
		for _, server := range servers {
			if lines[server.Name()] == nil {
				lineCtx, cancel := context.WithCancel(ctx)
				l := &line{sender: s, server: server, cancel: cancel}
				lines[server.Name()] = l
				sending.Go(func() { l.run(lineCtx, ctx) })
			}
		}
		for name, l := range lines {
			if !slices.ContainsFunc(servers, func(server Server) bool { return server.Name() == name }) {
				l.cancel()
				delete(lines, name)
			}
		}
		select {
		case <-ctx.Done():
			for _, l := range lines {
				l.cancel()
			}
			return nil
		case <-ticker.C:
		}
	}
}

// line sends beats to one server.
type line struct {
	sender *Sender
	server Server
	cancel context.CancelFunc
	failed bool // the last beat was not answered

	heard  time.Time // when the last answer came, or the first beat was sent
	silent bool      // was told to Heard
}

// run sends until ctx ends. When that is because the whole sender ends, the server is told.
func (l *line) run(ctx, whole context.Context) {
	defer l.cancel()
	defer l.server.Close()
	defer keepThread()()
	defer l.hear(true) // a server that is not asked any more is nobody's concern
	l.heard = time.Now()
	ticker := time.NewTicker(l.sender.opts.Every)
	defer ticker.Stop()
	for {
		l.beat(ctx, "")
		select {
		case <-ctx.Done():
			if whole.Err() != nil {
				l.beat(context.WithoutCancel(ctx), l.sender.opts.Leaving())
			}
			return
		case <-ticker.C:
		}
	}
}

// beat sends one beat and passes the answer on.
func (l *line) beat(ctx context.Context, leaving string) {
	opts := &l.sender.opts
	b := Beat{Name: opts.Node, BootID: opts.BootID, Leaving: leaving, FenceMillis: opts.Fence().Milliseconds()}
	sent := opts.Clock()
	answer, err := l.server.Beat(ctx, b, opts.Timeout)
	if err != nil {
		if ctx.Err() == nil && time.Since(l.heard) >= SilentAfter {
			l.hear(false)
		}
		if ctx.Err() == nil && !l.failed {
			l.failed = true
			opts.Logger.Warn("a server does not answer heartbeats", "server", l.server.Name(), "error", err)
		}
		return
	}
	l.heard = time.Now()
	l.hear(true)
	if l.failed {
		l.failed = false
		opts.Logger.Info("a server answers heartbeats again", "server", l.server.Name())
	}
	opts.Answered(answer, b, sent)
}

// hear tells what has changed.
func (l *line) hear(heard bool) {
	if l.silent == !heard {
		return
	}
	l.silent = !heard
	l.sender.opts.Heard(l.server.Name(), heard)
}

// Local is a server in this process.
type Local struct {
	// Take is what the server does with a beat.
	Take func(Beat) Answer
}

// Name implements Server.
func (Local) Name() string { return "local" }

// Beat implements Server.
func (l Local) Beat(_ context.Context, beat Beat, _ time.Duration) (Answer, error) {
	return l.Take(beat), nil
}

// Close implements Server.
func (Local) Close() {}
