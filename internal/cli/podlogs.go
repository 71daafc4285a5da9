package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// look prints what pods that are there wrote, and events: on a cluster that does not merge.
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
		out = append(out, logLine{Time: at, Source: pod.Name, Process: podRowOf(pod, at).Process, Text: text})
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
