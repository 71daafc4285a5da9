package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
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
	Source  string    `json:"source"` // pod, or "platform"
	Process string    `json:"process,omitempty"`
	Text    string    `json:"text"`
}

func (a *app) logsCommand() *cobra.Command {
	f := &logFlags{}
	cmd := f.register(&cobra.Command{
		Use: "logs [APP]", Short: "Show the logs of an application, merged by time", Args: atMostOne("APP"),
		Long: "Show the logs of all containers of an application, across restarts and releases, and what the platform did with it,\n" +
			"merged by time.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.logs(cmd, f, first(args)) },
	})
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on as lines come")
	cmd.Flags().StringVar(&f.since, "since", "", "only what is newer than a duration, such as 10m (default: everything that is kept)")
	cmd.Flags().IntVarP(&f.tail, "tail", "n", 0, "only the last lines of each container")
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
	l := &logReader{app: a, target: t, flags: f, since: since, known: map[string]time.Time{}}
	if err := l.look(ctx); err != nil {
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
}

// look prints what is there.
func (l *logReader) look(ctx context.Context) error {
	pods, err := l.target.pods(ctx, l.flags.process)
	if err != nil {
		return err
	}
	var lines []logLine
	for i := range pods {
		pod := &pods[i]
		for _, status := range pod.Status.ContainerStatuses {
			if status.RestartCount > 0 {
				previous, err := l.read(ctx, pod, status.Name, true)
				if err != nil {
					return err
				}
				lines = append(lines, previous...)
			}
			now, err := l.read(ctx, pod, status.Name, false)
			if err != nil {
				return err
			}
			lines = append(lines, now...)
			if started(status) {
				l.known[pod.Name+"/"+status.Name] = latest(now)
			}
		}
	}
	events, err := l.events(ctx)
	if err != nil {
		return err
	}
	lines = append(lines, events...)
	slices.SortStableFunc(lines, func(x, y logLine) int { return x.Time.Compare(y.Time) })
	for _, line := range lines {
		if err := l.print(line); err != nil {
			return err
		}
	}
	return nil
}

// started says whether a container runs or ran: before, it has no log.
func started(status corev1.ContainerStatus) bool { return status.State.Waiting == nil }

func latest(lines []logLine) time.Time {
	if len(lines) == 0 {
		return time.Time{}
	}
	return lines[len(lines)-1].Time
}

// read reads the log of one container as it is.
func (l *logReader) read(ctx context.Context, pod *corev1.Pod, container string, previous bool) ([]logLine, error) {
	body, err := l.open(ctx, pod, container, previous, false, l.since)
	if err != nil {
		l.app.warn("the log of %s cannot be read: %v", pod.Name, err)
		return nil, ctx.Err()
	}
	defer func() { _ = body.Close() }()
	var out []logLine
	err = scanLog(body, func(at time.Time, text string) error {
		if len(out) == maxLogLines {
			out = out[maxLogLines/2:]
		}
		out = append(out, logLine{at, pod.Name, podRowOf(pod, at).Process, text})
		return nil
	})
	return out, err
}

func (l *logReader) open(ctx context.Context, pod *corev1.Pod, container string, previous, follow bool, since time.Time) (io.ReadCloser, error) {
	query := url.Values{"container": {container}, "timestamps": {"true"}}
	if previous {
		query.Set("previous", "true")
	}
	if follow {
		query.Set("follow", "true")
	}
	if l.flags.tail > 0 && !follow {
		query.Set("tailLines", strconv.Itoa(l.flags.tail))
	}
	if !since.IsZero() {
		query.Set("sinceTime", since.UTC().Format(time.RFC3339))
	}
	return l.target.cluster.Open(ctx, fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/log?%s", pod.Namespace, pod.Name, query.Encode()))
}

// scanLog reads lines that begin with their time.
func scanLog(body io.Reader, each func(at time.Time, text string) error) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		stamp, text, _ := strings.Cut(lines.Text(), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			at, text = time.Now(), lines.Text()
		}
		if err := each(at, text); err != nil {
			return err
		}
	}
	return lines.Err()
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
			var events []logLine
			if events, err = l.events(ctx); err == nil {
				for _, line := range events {
					if err := l.print(line); err != nil {
						return err
					}
				}
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
				return l.print(logLine{at, copied.Name, process, text})
			}); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("read the log of %s: %w", copied.Name, err))
			}
		})
	}
}
