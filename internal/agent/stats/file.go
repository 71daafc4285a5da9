package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one file of the kernel; memory.stat has about 2 kB, /proc/stat
// 200 bytes a CPU.
const maxFile = 256 << 10

// scratch reads small files of the kernel into one buffer. The bytes hold until the next read.
type scratch struct{ buf []byte }

// read returns the content of a file.
func (s *scratch) read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if s.buf == nil {
		s.buf = make([]byte, 8<<10)
	}
	n := 0
	for {
		got, err := unix.Read(fd, s.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case got == 0:
			return s.buf[:n], nil
		}
		if n += got; n < len(s.buf) {
			continue
		}
		if n >= maxFile {
			return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
		}
		s.buf = append(s.buf, make([]byte, n)...)
	}
}

// number reads a file that holds one number; "max" is 0, which stands for no limit.
func (s *scratch) number(path string) (uint64, error) {
	data, err := s.read(path)
	if err != nil {
		return 0, err
	}
	data = bytes.TrimSpace(data)
	if string(data) == "max" {
		return 0, nil
	}
	n, ok := parse(data)
	if !ok {
		return 0, fmt.Errorf("%s holds %q, want a number", path, data)
	}
	return n, nil
}

// parse reads the digits that data begins with.
func parse(data []byte) (n uint64, ok bool) {
	for _, c := range data {
		if c < '0' || c > '9' {
			break
		}
		n, ok = n*10+uint64(c-'0'), true
	}
	return n, ok
}

// line cuts the first line off data.
func line(data []byte) (first, rest []byte) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return data[:i], data[i+1:]
	}
	return data, nil
}

// field cuts the first word off a line, and the spaces around it.
func field(text []byte) (first, rest []byte) {
	text = bytes.TrimLeft(text, " \t")
	if i := bytes.IndexAny(text, " \t"); i >= 0 {
		return text[:i], bytes.TrimLeft(text[i:], " \t")
	}
	return text, nil
}

// keyed calls f with each line "key number" of data.
func keyed(data []byte, f func(key []byte, value uint64)) {
	for len(data) > 0 {
		var text []byte
		text, data = line(data)
		key, rest := field(text)
		if n, ok := parse(rest); ok {
			f(key, n)
		}
	}
}
