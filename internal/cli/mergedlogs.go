package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"time"

	"gantry.dev/gantry/internal/platform/deploy"
)

// overlap is how far back news are asked for: the clocks of several nodes differ a little.
const overlap = 2 * time.Second

// openMerged reads what the cluster has merged of the application; brief leaves out what pods wrote.
func (l *logReader) openMerged(ctx context.Context, since time.Time, tail int, brief bool, each func(logLine) error) error {
	query := url.Values{}
	if l.flags.process != "" {
		query.Set("process", l.flags.process)
	}
	if !since.IsZero() {
		query.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if tail > 0 {
		query.Set("tail", strconv.Itoa(tail))
	}
	if brief {
		query.Set("brief", "true")
	}
	key := l.target.key
	body, err := l.target.cluster.Open(ctx, fmt.Sprintf("/apis/logs.gantry.dev/v1alpha1/namespaces/%s/apps/%s/log?%s", key.Namespace, key.Name, query.Encode()))
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var line logLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if err := each(line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return deploy.Reached("read the log", err)
	}
	return nil
}

// fromPod tells whether a container wrote a line.
func (line *logLine) fromPod() bool { return line.Source != "gateway" && line.Source != "platform" }

// key tells lines of the gateway and the platform apart.
func (line *logLine) key() string {
	if line.ID != "" {
		return line.ID
	}
	return line.Time.Format(time.RFC3339Nano) + line.Text
}

// lookMerged prints what there is. The last line of each pod is where following goes on.
func (l *logReader) lookMerged(ctx context.Context) error {
	begun := time.Now()
	lastOf := map[string]time.Time{}
	err := l.openMerged(ctx, l.since, l.flags.tail, false, func(line logLine) error {
		if line.fromPod() {
			lastOf[line.Source] = line.Time
		} else if line.Time.After(begun.Add(-2 * overlap)) {
			l.shown[line.key()] = true
		}
		return l.print(line)
	})
	if err != nil {
		return err
	}
	l.newest = begun
	if !l.flags.follow {
		return nil
	}
	pods, err := l.target.pods(ctx, l.flags.process)
	if err != nil {
		return err
	}
	for i := range pods {
		for _, status := range pods[i].Status.ContainerStatuses {
			if at, known := lastOf[pods[i].Name]; known && started(status) {
				l.known[pods[i].Name+"/"+status.Name] = at
			} else if started(status) {
				l.known[pods[i].Name+"/"+status.Name] = l.since
			}
		}
	}
	return nil
}

// news prints what the gateway and the platform said meanwhile.
func (l *logReader) news(ctx context.Context) error {
	now := time.Now()
	shown := map[string]bool{}
	err := l.openMerged(ctx, l.newest.Add(-overlap), 0, true, func(line logLine) error {
		key := line.key()
		shown[key] = true
		if l.shown[key] {
			return nil
		}
		return l.print(line)
	})
	if err != nil {
		maps.Copy(l.shown, shown)
		return err
	}
	l.shown, l.newest = shown, now
	return nil
}
