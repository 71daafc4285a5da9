package applog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantry.dev/gantry/internal/agent/crilog"
)

// maxLineBytes bounds one line; longer ones are cut.
const maxLineBytes = 1 << 20

// Read gives what is known of an application on this node in order of time, with what more gives.
func (k *Keeper) Read(ctx context.Context, q Query, more []Source, emit func(Line) error) error {
	var sources []delayed
	for _, s := range more {
		sources = append(sources, delayed{open: func() (Source, error) { return s, nil }})
	}
	if q.Process == "" {
		for _, name := range []string{platformOld, platformFile} {
			if f, err := os.Open(filepath.Join(k.appFolder(q.Namespace, q.App), name)); err == nil {
				sources = append(sources, delayed{open: func() (Source, error) { return since(Decode(f), q.Since), nil }})
			}
		}
	}
	if !q.Brief {
		pods, err := k.pods(q)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for _, pod := range pods {
			sources = append(sources, delayed{began: pod.Began, open: func() (Source, error) { return readContainer(ctx, pod, q.Since), nil }})
		}
	}
	return merge(ctx, sources, q.Tail, emit)
}

// container is a container of a pod of an application.
type container struct {
	Pod
	dir string // of its logs
}

// pods finds the containers of an application that may have lines since a time, those that are gone included.
func (k *Keeper) pods(q Query) ([]container, error) {
	var out []container
	gone := filepath.Join(k.appFolder(q.Namespace, q.App), podsFolder)
	for _, place := range []struct{ dir, prefix string }{{k.opts.PodsDir, filepath.Base(q.Namespace) + "_"}, {gone, ""}} {
		list, err := names(place.dir)
		if err != nil {
			return nil, err
		}
		for _, name := range list {
			dir := filepath.Join(place.dir, name)
			if !strings.HasPrefix(name, place.prefix) {
				continue
			}
			p, err := readPod(dir)
			if err != nil || p.Namespace != q.Namespace || p.App != q.App || q.Process != "" && p.Process != q.Process {
				continue
			}
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("reading the logs of applications: %w", err)
			}
			for _, e := range entries {
				if e.IsDir() {
					out = append(out, container{p, filepath.Join(dir, e.Name())})
				}
			}
		}
	}
	return out, nil
}

// attempts lists the logs of a container in order, those that have lines since a time.
func attempts(dir string, since time.Time) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	newest := map[int]time.Time{}
	for _, e := range entries {
		number, _, ok := strings.Cut(e.Name(), ".log")
		n, err := strconv.Atoi(number)
		info, infoErr := e.Info()
		if !ok || err != nil || infoErr != nil {
			continue
		}
		if at := info.ModTime(); at.After(newest[n]) {
			newest[n] = at
		}
	}
	var numbers []int
	for n, at := range newest {
		if !at.Add(time.Second).Before(since) { // files' times are some milliseconds behind
			numbers = append(numbers, n)
		}
	}
	slices.SortFunc(numbers, cmp.Compare[int])
	out := make([]string, 0, len(numbers))
	for _, n := range numbers {
		out = append(out, filepath.Join(dir, strconv.Itoa(n)+".log"))
	}
	return out
}

// containerSource is the log of a container, all of its attempts one after the other.
type containerSource struct {
	pod   Pod
	body  *io.PipeReader
	lines *bufio.Reader
	ended chan struct{}
}

// readContainer begins to read. What reads the files ends with Close.
func readContainer(ctx context.Context, c container, since time.Time) Source {
	body, into := io.Pipe()
	s := &containerSource{pod: c.Pod, body: body, lines: bufio.NewReaderSize(body, 32<<10), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		var err error
		for _, path := range attempts(c.dir, since) {
			err = crilog.Read(ctx, path, crilog.Options{Tail: -1, Timestamps: true, Since: since}, into, into)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil // removed meanwhile, or moved: what is left of it comes from there
			}
			if err != nil {
				break
			}
		}
		_ = into.CloseWithError(err)
	}()
	return s
}

// Next implements Source.
func (s *containerSource) Next() (Line, error) {
	for {
		raw, err := readLine(s.lines)
		if err != nil {
			return Line{}, err
		}
		stamp, text, _ := bytes.Cut(raw, []byte{' '})
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil {
			continue // the rest of a line that was cut
		}
		return Line{Time: at, Source: s.pod.Name, Process: s.pod.Process, Release: s.pod.Release, Text: string(text)}, nil
	}
}

// readLine reads a line without its end; what is longer than maxLineBytes is cut.
func readLine(r *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(out) < maxLineBytes {
			out = append(out, part...)
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(out, []byte{'\n'}), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(out) > 0:
			return out, nil
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		default:
			return nil, fmt.Errorf("reading a pod's log: %w", err)
		}
	}
}

// Close implements Source.
func (s *containerSource) Close() error {
	_ = s.body.Close()
	<-s.ended
	return nil
}

// since leaves out what is older.
func since(s Source, at time.Time) Source { return &newer{s, at} }

type newer struct {
	Source
	at time.Time
}

// Next implements Source.
func (n *newer) Next() (Line, error) {
	for {
		line, err := n.Source.Next()
		if err != nil || !line.Time.Before(n.at) {
			return line, err
		}
	}
}
