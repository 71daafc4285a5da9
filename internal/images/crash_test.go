//go:build linux

package images

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const crashDir = "GANTRY_TEST_CRASH_DIR"

// crashBlob is the content of a number; the same in both processes.
func crashBlob(n int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("blob %d ", n)), 5000) }

// TestCrashPusher is the process that TestKillDuringPush kills: it pushes images and tells which are acknowledged.
func TestCrashPusher(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("run by TestKillDuringPush")
	}
	store, err := NewStore(StoreOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	repo := Repository{"shop", "web", "shop/web"}
	for n := 0; ; n++ {
		data := crashBlob(n)
		d := digest.FromBytes(data)
		if err := store.PutBlob(t.Context(), repo, d, int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"x","digest":%q,"size":%d},"layers":[]}`, d, len(data))
		if _, err := store.PutManifest(t.Context(), repo, fmt.Sprintf("v%d", n), "", "application/vnd.oci.image.manifest.v1+json", []byte(manifest)); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pushed %d\n", n)
	}
}

// TestKillDuringPush kills a pushing process at chance moments: what was acknowledged is whole, everything shown is whole, and
// the next process goes on. (It shows the order of writes; a power failure would also show what was not synced.)
func TestKillDuringPush(t *testing.T) {
	dir := t.TempDir()
	repo := Repository{"shop", "web", "shop/web"}
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashPusher$", "-test.v") //nolint:gosec // this test itself
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last, stopAfter := -1, 2+rand.IntN(5)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			n := 0
			if _, err := fmt.Sscanf(lines.Text(), "pushed %d", &n); err != nil {
				continue
			}
			if last = n; n == stopAfter {
				kill := time.AfterFunc(time.Duration(rand.IntN(4000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
				defer kill.Stop()
			}
		}
		_ = cmd.Wait() // it was killed
		if last < stopAfter {
			t.Fatalf("round %d: the pusher ended by itself after %d", round, last)
		}
		store, err := NewStore(StoreOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		tags, err := store.Tags(repo)
		if err != nil || len(tags) <= last {
			t.Fatalf("round %d: %d tags after %d pushes: %v", round, len(tags), last+1, err)
		}
		for _, tag := range tags {
			checkImage(t, store, repo, tag)
		}
		if _, err := store.Collect(Keep{}); err != nil {
			t.Fatal(err)
		}
		checkImage(t, store, repo, "v0")
		if left, err := names(dir + "/uploads"); err != nil || len(left) > 0 {
			t.Errorf("uploads left: %v, %v", left, err)
		}
	}
}

// checkImage reads an image and its layers against their digests.
func checkImage(t *testing.T, store *Store, repo Repository, tag string) {
	t.Helper()
	d, err := store.Resolve(repo, tag)
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.GetManifest(repo, d)
	if err != nil || digest.FromBytes(m.Data) != d {
		t.Fatalf("manifest of %s: %v", tag, err)
	}
	doc, err := parseManifest(m.MediaType, m.Data)
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range doc.children() {
		blob, err := store.OpenBlob(repo, child.Digest)
		if err != nil {
			t.Fatalf("layer of %s: %v", tag, err)
		}
		got, err := digest.FromReader(blob)
		_ = blob.Close()
		if err != nil || got != child.Digest {
			t.Errorf("layer of %s is %s, not %s: %v", tag, got, child.Digest, err)
		}
	}
}
