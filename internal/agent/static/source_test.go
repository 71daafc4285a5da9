package static

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// decode takes a file's whole content for the pod's name and UID.
func decode(data []byte, _ string) (*corev1.Pod, error) {
	if len(data) == 0 {
		return nil, errors.New("empty")
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: string(data[:1]), UID: types.UID(data)}}, nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func uids(pods []*corev1.Pod) []string {
	list := []string{}
	for _, p := range pods {
		list = append(list, string(p.UID))
	}
	return list
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Options{Path: dir, Decode: decode})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want ...string) {
		t.Helper()
		if got := uids(s.Read()); !slices.Equal(got, want) {
			t.Errorf("Read = %v, want %v", got, want)
		}
	}
	expect()
	write(t, filepath.Join(dir, "1"), "a1")
	write(t, filepath.Join(dir, "2"), "b1")
	write(t, filepath.Join(dir, ".hidden"), "c1")
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect("a1", "b1")
	write(t, filepath.Join(dir, "1"), "a12")
	expect("a12", "b1")
	write(t, filepath.Join(dir, "1"), "") // being written: the last good one stays
	expect("a12", "b1")
	write(t, filepath.Join(dir, "3"), "a3333")
	expect("a3333", "b1")
	for _, name := range []string{"1", "3"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	expect("b1")
}

func TestReadFileOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "one.yaml")
	s, err := New(Options{Path: path, Decode: decode})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Read(); len(got) != 0 {
		t.Errorf("a missing file has pods: %v", got)
	}
	write(t, path, "x")
	write(t, filepath.Join(dir, "other"), "y")
	if got := uids(s.Read()); !slices.Equal(got, []string{"x"}) {
		t.Errorf("Read = %v, want the file's pod alone", got)
	}
}

func TestRunFollowsChanges(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	s, err := New(Options{Path: dir, Decode: decode, Every: 50 * time.Millisecond, Settle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	found, done := make(chan []string), make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx, func(pods []*corev1.Pod) {
			select {
			case found <- uids(pods):
			case <-ctx.Done():
			}
		})
	}()
	defer func() {
		cancel()
		<-done
	}()
	<-found // the folder is there
	write(t, filepath.Join(dir, "1"), "a1")
	deadline := time.After(20 * time.Second)
	for {
		select {
		case got := <-found:
			if slices.Equal(got, []string{"a1"}) {
				return
			}
		case <-deadline:
			t.Fatal("the new pod was not seen in 20 s")
		}
	}
}
