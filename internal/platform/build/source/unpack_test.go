package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func archive(t *testing.T, zipped bool, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, h := range headers {
		data := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			data = bytes.Repeat([]byte("x"), int(h.Size))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !zipped {
		return &buffer
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(buffer.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestUnpack(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	for name, zipped := range map[string]bool{"gzip": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := Unpack(t.Context(), archive(t, zipped,
				tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
				tar.Header{Name: "./a/b/run.sh", Typeflag: tar.TypeReg, Size: 3, Mode: 0o4777},
				tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "a/b/run.sh"},
			), dir, at, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, "link"))
			if err != nil || info.Size() != 3 || info.Mode() != 0o755 || !info.ModTime().Equal(at) {
				t.Errorf("link = %v, %v; want an executable file of 3 bytes", info, err)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	file := func(name string, size int64) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size, Mode: 0o644}
	}
	for name, tc := range map[string]struct {
		headers []tar.Header
		want    error
	}{
		"parent":            {[]tar.Header{file("../evil", 1)}, ErrUnsafe},
		"parent in between": {[]tar.Header{file("a/../../evil", 1)}, ErrUnsafe},
		"absolute":          {[]tar.Header{file("/evil", 1)}, ErrUnsafe},
		"link out":          {[]tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../x"}}, ErrUnsafe},
		"absolute link":     {[]tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}, ErrUnsafe},
		"hard link":         {[]tar.Header{{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}, ErrUnsafe},
		"device":            {[]tar.Header{{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 8}}, ErrUnsafe},
		"pipe":              {[]tar.Header{{Name: "p", Typeflag: tar.TypeFifo}}, ErrUnsafe},
		"too large":         {[]tar.Header{file("a", 60), file("b", 60)}, ErrTooLarge},
		"too many":          {[]tar.Header{file("a", 1), file("b", 1), file("c", 1), file("d", 1)}, ErrTooLarge},
		"twice":             {[]tar.Header{file("a", 1), file("a", 1)}, os.ErrExist},
		"through a link":    {[]tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "nothing"}, file("l", 1)}, os.ErrExist},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			dir := filepath.Join(outer, "dir")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			err := Unpack(t.Context(), archive(t, true, tc.headers...), dir, time.Unix(0, 0), Limits{Bytes: 100, Entries: 3})
			if !errors.Is(err, tc.want) {
				t.Errorf("Unpack: %v, want %v", err, tc.want)
			}
			if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
				t.Errorf("outside of the folder there is %v, %v", entries, err)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("x"), "a/../../b", byte(tar.TypeReg), "../c")
	f.Fuzz(func(t *testing.T, data []byte, name string, kind byte, link string) {
		var buffer bytes.Buffer
		w := tar.NewWriter(&buffer)
		h := &tar.Header{Name: name, Typeflag: kind, Linkname: link, Mode: 0o644}
		if kind == tar.TypeReg {
			h.Size = int64(len(data))
		}
		if w.WriteHeader(h) != nil {
			return
		}
		if kind == tar.TypeReg {
			_, _ = w.Write(data)
		}
		_ = w.Close()
		outer := t.TempDir()
		dir := filepath.Join(outer, "dir")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = Unpack(t.Context(), &buffer, dir, time.Unix(0, 0), Limits{Bytes: 1 << 20, Entries: 10})
		if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
			t.Errorf("outside of the folder there is %v, %v", entries, err)
		}
	})
}
