package workload

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"
)

// Options tunes the controllers of this package. The zero value suits production.
type Options struct {
	Workers      int           // objects reconciled at once; default 8
	WriteWorkers int           // pods created or deleted at once, over all owners; default 64
	Batch        time.Duration // wait for more pod events before a status is written; default 10ms
	Log          *slog.Logger  // default: discard

	// MaxUnavailable is upstream's feature gate MaxUnavailableStatefulSet, off by default in
	// 1.36: a rolling update of a StatefulSet keeps to spec.updateStrategy.rollingUpdate.maxUnavailable.
	MaxUnavailable bool
}

func (o *Options) setDefaults() error {
	o.Workers = cmp.Or(o.Workers, 8)
	o.WriteWorkers = cmp.Or(o.WriteWorkers, 64)
	o.Batch = cmp.Or(o.Batch, 10*time.Millisecond)
	if o.WriteWorkers < 1 || o.WriteWorkers > 1024 || o.Batch < 0 {
		return fmt.Errorf("workload: WriteWorkers is %d and Batch %v, want 1 to 1024 and at least 0", o.WriteWorkers, o.Batch)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}
