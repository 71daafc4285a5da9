package crilog

import (
	"bytes"
	"fmt"
	"time"
)

// line is one record of a log file.
type line struct {
	at     time.Time
	stamp  []byte // the time as it is written
	stderr bool
	text   []byte // with its newline, unless the line goes on
}

// parse reads one record.
func parse(raw []byte) (line, error) {
	stamp, rest, ok := bytes.Cut(raw, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok || !ok2 || !ok3 && len(rest) == 0 {
		return line{}, fmt.Errorf("a log record of %d bytes has too few fields", len(raw))
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return line{}, fmt.Errorf("reading the time of a log record: %w", err)
	}
	l := line{at: at, stamp: stamp, stderr: string(stream) == "stderr", text: text}
	if first, _, _ := bytes.Cut(tag, []byte{':'}); string(first) == "P" {
		l.text = bytes.TrimSuffix(l.text, []byte{'\n'})
	} else if !bytes.HasSuffix(l.text, []byte{'\n'}) {
		l.text = append(bytes.Clone(l.text), '\n')
	}
	return l, nil
}
