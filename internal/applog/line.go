package applog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Sources of lines that are no pod's name.
const (
	SourcePlatform = "platform"
	SourceGateway  = "gateway"
)

// Line is one line about an application.
type Line struct {
	Time    time.Time `json:"time"`
	Source  string    `json:"source"` // a pod's name, SourcePlatform or SourceGateway
	Process string    `json:"process,omitempty"`
	Release string    `json:"release,omitempty"`
	ID      string    `json:"id,omitempty"` // of a platform's line: what several nodes noted is one
	Text    string    `json:"text"`
}

// Query selects lines of an application.
type Query struct {
	Namespace, App string
	Process        string    // of this process alone; the platform's and the gateway's lines are then left out
	Since          time.Time // zero: all
	Tail           int       // the last so many; 0: all
	Brief          bool      // without what pods wrote: who follows reads that elsewhere
}

// Source gives lines in order of time until io.EOF. Close may be called before the end, and ends what Next waits for.
type Source interface {
	Next() (Line, error)
	Close() error
}

// Merge gives the lines of all sources in order of time to emit, the last tail of them if tail is positive. It closes the sources.
// Lines with an ID that came just before are left out.
func Merge(ctx context.Context, sources []Source, tail int, emit func(Line) error) error {
	starting := make([]delayed, 0, len(sources))
	for _, s := range sources {
		starting = append(starting, delayed{open: func() (Source, error) { return s, nil }})
	}
	return merge(ctx, starting, tail, emit)
}

// Encode writes a line as Decode reads it.
func Encode(w io.Writer, line Line) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encoding a line: %w", err)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// Decode reads lines of JSON.
func Decode(r io.ReadCloser) Source {
	return &decoder{body: r, lines: bufio.NewReaderSize(r, 64<<10)}
}

type decoder struct {
	body  io.ReadCloser
	lines *bufio.Reader
}

// Next implements Source. A line that is no JSON is passed over: the last one of a file may be half written.
func (d *decoder) Next() (line Line, err error) {
	for {
		text, err := d.lines.ReadBytes('\n')
		if len(bytes.TrimSpace(text)) > 0 && json.Unmarshal(text, &line) == nil {
			return line, nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return line, io.EOF
			}
			return line, fmt.Errorf("reading lines: %w", err)
		}
	}
}

// Close implements Source.
func (d *decoder) Close() error { return d.body.Close() }
