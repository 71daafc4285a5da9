package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func namedMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Data: map[string]string{"value": value}}
}

func snapshotOf(t *testing.T, s *Store) ([]byte, int64) {
	t.Helper()
	snapshot, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := snapshot.WriteTo(&out)
	if err = errors.Join(err, snapshot.Close(), snapshot.Close()); err != nil {
		t.Fatal(err)
	}
	if n != snapshot.SizeBytes() || int64(out.Len()) != n {
		t.Errorf("%d bytes were written, %d said, %d promised", out.Len(), n, snapshot.SizeBytes())
	}
	return out.Bytes(), snapshot.Revision()
}

func TestSnapshotAndRestore(t *testing.T) {
	s, stop := start(t, Options{Dir: t.TempDir()})
	var last int64
	for i := range 20 {
		e, err := s.Create(t.Context(), "configmaps", fmt.Sprintf("a/%02d", i), namedMap(fmt.Sprintf("%02d", i), "old"))
		if err != nil {
			t.Fatal(err)
		}
		last = e.Rev
	}
	if _, err := s.Delete(t.Context(), "configmaps", "a/19", last); err != nil {
		t.Fatal(err)
	}
	data, revision := snapshotOf(t, s)
	if revision != s.Revision() || revision != last+1 {
		t.Errorf("the snapshot says revision %d, the store is at %d after %d", revision, s.Revision(), last)
	}
	if _, err := s.Create(t.Context(), "configmaps", "a/late", namedMap("late", "lost")); err != nil {
		t.Fatal(err)
	}
	stop()

	dir := filepath.Join(t.TempDir(), "etcd")
	done, err := Restore(t.Context(), bytes.NewReader(data), RestoreOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if done.Revision != revision || done.Now != revision+RevisionGap || done.ClusterID == s.member.server.Cluster().ID().String() {
		t.Errorf("restored %+v from revision %d of cluster %s", done, revision, s.member.server.Cluster().ID())
	}
	for range 2 { // and over a restart
		s, stop = start(t, Options{Dir: dir})
		if s.Revision() < done.Now {
			t.Errorf("the restored store is at %d, want at least %d", s.Revision(), done.Now)
		}
		list, err := s.List(t.Context(), "configmaps", ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, e := range list.Entries {
			keys = append(keys, e.Key)
		}
		if len(keys) < 19 || slices.Contains(keys, "a/19") || slices.Contains(keys, "a/late") {
			t.Errorf("the restored store holds %v", keys)
		}
		// Whoever watched the lost cluster, also after the backup, must list again.
		for _, since := range []int64{revision, revision + 1, revision + 5000, done.Now - 1} {
			if _, err := s.Watch(t.Context(), "configmaps", WatchOptions{Since: since}); !errors.Is(err, ErrGone) {
				t.Errorf("a watch since %d: %v, want %v", since, err, ErrGone)
			}
			if _, err := s.List(t.Context(), "configmaps", ListOptions{Rev: since}); !errors.Is(err, ErrGone) {
				t.Errorf("a list at %d: %v, want %v", since, err, ErrGone)
			}
		}
		e, err := s.Create(t.Context(), "configmaps", fmt.Sprintf("a/new-%d", s.Revision()), namedMap("new", "new"))
		if err != nil || e.Rev <= done.Now {
			t.Errorf("a write after the restore: revision %d, %v", e.Rev, err)
		}
		stop()
	}
}

func TestRestoreRefusesWhatIsBroken(t *testing.T) {
	s, stop := start(t, Options{Dir: t.TempDir()})
	for i := range 50 {
		if _, err := s.Create(t.Context(), "configmaps", fmt.Sprintf("a/%02d", i), namedMap("x", strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	data, _ := snapshotOf(t, s)
	stop()
	flipped := bytes.Clone(data)
	flipped[len(data)/2] ^= 1
	for name, broken := range map[string][]byte{
		"empty": nil, "a few bytes": data[:20], "truncated": data[:len(data)-4096], "without its hash": data[:len(data)-32], "one bit flipped": flipped,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Restore(t.Context(), bytes.NewReader(broken), RestoreOptions{Dir: t.TempDir()}); err == nil {
				t.Error("it was restored")
			}
		})
	}
	t.Run("ended by its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Restore(ctx, bytes.NewReader(data), RestoreOptions{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) {
			t.Errorf("Restore = %v", err)
		}
	})
	t.Run("into a folder in use", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "etcd")
		if _, err := Restore(t.Context(), bytes.NewReader(data), RestoreOptions{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), bytes.NewReader(data), RestoreOptions{Dir: dir}); err == nil {
			t.Error("it was restored over another store")
		}
	})
}
