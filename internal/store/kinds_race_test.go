package store

import (
	"context"
	"fmt"
	"testing"
)

// Kinds come and go while another kind is written all the time: etcd tells of a revision before the
// revision can be read, which must not be seen here.
func TestKindsAreAddedDuringWrites(t *testing.T) {
	s, stop := start(t, Options{Dir: t.TempDir()})
	defer stop()
	mustCreate(t, s, "first", "red", "1") // the store is up
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan error, 4)
	for w := range cap(written) {
		go func() {
			var err error
			for i := 0; ctx.Err() == nil && err == nil; i++ {
				name := fmt.Sprintf("w%d-%d", w, i)
				_, err = s.Create(context.WithoutCancel(ctx), "configmaps", "default/"+name, configMap(name, "red", "1"))
			}
			written <- err
		}()
	}
	for i := range 2000 {
		name := fmt.Sprintf("added%d", i)
		if err := s.AddKinds(t.Context(), &Kind{Name: name, Prefix: "/registry/" + name + "/", Namespaced: true, Codec: jsonCodec{}}); err != nil {
			t.Fatalf("AddKinds %d: %v", i, err)
		}
		if err := s.RemoveKind(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for range cap(written) {
		if err := <-written; err != nil {
			t.Error(err)
		}
	}
}
