package crilog

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestCopyFormat(t *testing.T) {
	long := strings.Repeat("x", MaxLine+10)
	for name, tc := range map[string]struct {
		in   string
		want []string // tag and text of each line
	}{
		"lines":             {"one\ntwo\n", []string{"F one", "F two"}},
		"no newline at end": {"one", []string{"P one"}},
		"empty line":        {"\n", []string{"F "}},
		"long line":         {long + "\n", []string{"P " + long[:MaxLine], "F " + long[MaxLine:]}},
		"nothing":           {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			w, err := Open(Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			var seen bytes.Buffer
			if err := w.Copy(Stderr, strings.NewReader(tc.in), func(b []byte) { seen.Write(b) }); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if seen.String() != tc.in {
				t.Errorf("tee saw %d bytes, want %d", seen.Len(), len(tc.in))
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			pattern := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stderr ([FP] .*)$`)
			var got []string
			for line := range strings.Lines(string(data)) {
				match := pattern.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
				if match == nil {
					t.Fatalf("line %q is not in the CRI format", line)
				}
				got = append(got, match[1])
			}
			if strings.Join(got, "|") != strings.Join(tc.want, "|") {
				t.Errorf("lines = %.80q, want %.80q", got, tc.want)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w, err := Open(Options{Path: path, MaxBytes: 1000, MaxFiles: 3})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := w.Copy(Stdout, strings.NewReader(strings.Repeat("y", 50)+"\n"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rotated := Rotated(path)
	if len(rotated) != 2 {
		t.Errorf("rotated files = %v, want 2", rotated)
	}
	for _, file := range append(rotated, path) {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 1000 {
			t.Errorf("%s has %d bytes, want at most 1000", file, info.Size())
		}
	}
}

func TestWriteGoesOnWhenTheFileIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "0.log")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := Open(Options{Path: path, MaxBytes: 200})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := w.Copy(Stdout, strings.NewReader("gone\n"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if w.Dropped() == 0 {
		t.Error("nothing was dropped although the folder is gone")
	}
}
