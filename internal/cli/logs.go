package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// lookForPods is how often following logs looks for new pods.
const lookForPods = time.Second

// maxLogLines bounds what a merged look back holds in memory.
const maxLogLines = 200_000

// logFlags are those of "logs".
type logFlags struct {
	appFlags
	follow         bool
	since, process string
	tail           int
}

// logLine is one line of one source.
type logLine struct {
	Time    time.Time `json:"time"`
	Source  string    `json:"source"` // pod, "platform" or "gateway"
	Process string    `json:"process,omitempty"`
	Release string    `json:"release,omitempty"`
	ID      string    `json:"id,omitempty"` // of a line of the platform
	Text    string    `json:"text"`
}

const logsLong = `Show what an application wrote, what its gateway answered and what the platform did with it, merged by time: over restarts,
releases and failed deploys, of pods that are gone, too. A cluster keeps the last seven days, and 200 MB an application and node.

On a terminal the last 200 lines are shown unless --tail or --since says more; in a pipe all.`

// terminalTail is how many lines a terminal gets without being asked for more.
const terminalTail = 200

func (a *app) logsCommand() *cobra.Command {
	f := &logFlags{}
	cmd := f.register(&cobra.Command{
		Use: "logs [APP]", Short: "Show the logs of an application, merged by time", Args: atMostOne("APP"),
		Long: logsLong,
		RunE: func(cmd *cobra.Command, args []string) error { return a.logs(cmd, f, first(args)) },
	})
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on as lines come")
	cmd.Flags().StringVar(&f.since, "since", "", "only what is newer than a duration, such as 10m (default: everything that is kept)")
	cmd.Flags().IntVarP(&f.tail, "tail", "n", 0, "only the last lines (default: 200 on a terminal, else all)")
	cmd.Flags().StringVar(&f.process, "process", "", "of one process, such as worker")
	return cmd
}

func (a *app) logs(cmd *cobra.Command, f *logFlags, name string) error {
	var since time.Time
	if f.since != "" {
		d, err := appfile.ParseDuration(f.since)
		if err != nil {
			return usage("--since: %q %w", f.since, err)
		}
		since = time.Now().Add(-d)
	}
	t, err := a.target(cmd, &f.appFlags, name)
	if err != nil {
		return err
	}
	if _, err := t.cluster.App(cmd.Context(), t.key); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l := &logReader{app: a, target: t, flags: f, since: since, known: map[string]time.Time{}, shown: map[string]bool{}}
	if f.tail == 0 && since.IsZero() && a.env.IsTerminal && showsTo(a.env.Stdout) && !a.json {
		f.tail = terminalTail
	}
	err = l.lookMerged(ctx)
	if l.merged = !deploy.NotServed(err); !l.merged {
		err = l.look(ctx)
	}
	if err != nil {
		return err
	}
	if !f.follow {
		return nil
	}
	return l.follow(ctx)
}

// logReader reads the logs of an application.
type logReader struct {
	app    *app
	target *appTarget
	flags  *logFlags
	since  time.Time
	width  int

	mu    sync.Mutex           // guards what follows, and the output
	known map[string]time.Time // containers that are read, with the time of the last line
	event time.Time            // of the last event that was shown

	merged bool            // the cluster merges; else its pods' logs and events are read
	newest time.Time       // of the lines that it merged
	shown  map[string]bool // lines of the platform and the gateway of the last seconds
	day    string          // of the last line that was printed
}

// events are what the platform says about the application's objects.
func (l *logReader) events(ctx context.Context) ([]logLine, error) {
	if l.flags.process != "" {
		return nil, nil
	}
	var list corev1.EventList
	if err := l.target.cluster.Client.List(ctx, &list, client.InNamespace(l.target.key.Namespace)); err != nil {
		return nil, deploy.Reached("list the events", err)
	}
	var out []logLine
	newest := l.event
	for i := range list.Items {
		e := &list.Items[i]
		at := eventTime(e)
		if !l.target.owns(e.InvolvedObject.Name) || at.Before(l.since) || !at.After(l.event) {
			continue
		}
		if at.After(newest) {
			newest = at
		}
		out = append(out, logLine{Time: at, Source: "platform", Text: fmt.Sprintf("%s %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)})
	}
	l.event = newest
	slices.SortStableFunc(out, func(x, y logLine) int { return x.Time.Compare(y.Time) })
	return out, nil
}

// print writes one line. Sources stand in a column that grows with them.
func (l *logReader) print(line logLine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.app.json {
		if err := json.NewEncoder(l.app.env.Stdout).Encode(line); err != nil {
			return fmt.Errorf("print the log: %w", err)
		}
		return nil
	}
	if day := line.Time.UTC().Format("Monday, 2 January 2006"); day != l.day {
		if l.day != "" || time.Since(line.Time) > 24*time.Hour {
			if err := l.app.printf("-- %s\n", day); err != nil {
				return err
			}
		}
		l.day = day
	}
	source := strings.TrimPrefix(line.Source, l.target.key.Name+"-")
	l.width = max(l.width, len(source))
	return l.app.printf("%s %-*s | %s\n", line.Time.UTC().Format("15:04:05.000"), l.width, source, line.Text)
}

// follow goes on with containers that run and looks for new ones until ctx ends. It waits for all that it started.
func (l *logReader) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	following := map[string]bool{}
	tick := time.NewTicker(lookForPods)
	defer tick.Stop()
	for {
		pods, err := l.target.pods(ctx, l.flags.process)
		if err == nil {
			for i := range pods {
				l.followPod(ctx, cancel, &group, following, &pods[i])
			}
			if l.merged {
				err = l.news(ctx)
			} else {
				err = l.newEvents(ctx)
			}
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil && cause != ctx.Err() { //nolint:errorlint // the very value says that nobody gave a cause
				return cause
			}
			return nil
		case <-tick.C:
		}
		if err != nil && ctx.Err() == nil {
			l.app.warn("%v", err)
		}
	}
}

// newEvents prints what the platform said meanwhile, where the cluster does not merge.
func (l *logReader) newEvents(ctx context.Context) error {
	events, err := l.events(ctx)
	for _, line := range events {
		if err := l.print(line); err != nil {
			return err
		}
	}
	return err
}

// followPod begins to follow each run of each container of a pod, once.
func (l *logReader) followPod(ctx context.Context, cancel context.CancelCauseFunc, group *sync.WaitGroup, following map[string]bool, pod *corev1.Pod) {
	for _, status := range pod.Status.ContainerStatuses {
		run := cmp.Or(status.ContainerID, strconv.Itoa(int(status.RestartCount)))
		key := pod.Name + "/" + status.Name
		if following[key+run] || !started(status) {
			continue
		}
		following[key+run] = true
		l.mu.Lock()
		after := l.known[key]
		l.mu.Unlock()
		copied, name := pod.DeepCopy(), status.Name
		group.Go(func() {
			body, err := l.open(ctx, copied, name, false, true, after)
			if err != nil {
				return // gone meanwhile; if it runs again, that is another run
			}
			defer func() { _ = body.Close() }()
			process := podRowOf(copied, time.Now()).Process
			if err := scanLog(body, func(at time.Time, text string) error {
				if !at.After(after) {
					return nil // sinceTime counts in seconds
				}
				l.mu.Lock()
				l.known[key] = at
				l.mu.Unlock()
				return l.print(logLine{Time: at, Source: copied.Name, Process: process, Text: text})
			}); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("read the log of %s: %w", copied.Name, err))
			}
		})
	}
}
