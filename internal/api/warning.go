package api

import (
	"slices"
	"sync"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/warning"
)

// maxWarningBytes bounds all warnings of an answer together, as upstream does, so that headers stay readable.
const maxWarningBytes = 4096

// warnings collects what the answer's Warning headers say. It implements warning.Recorder.
type warnings struct {
	q *query

	mu    sync.Mutex // guards the fields below
	seen  []string
	bytes int
}

var _ warning.Recorder = (*warnings)(nil)

// AddWarning implements warning.Recorder: each text once, until the answer has begun.
func (w *warnings) AddWarning(agent, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text == "" || slices.Contains(w.seen, text) || w.bytes+len(text) > maxWarningBytes {
		return
	}
	header, err := utilnet.NewWarningHeader(299, agent, text)
	if err != nil {
		return
	}
	w.seen, w.bytes = append(w.seen, text), w.bytes+len(text)
	w.q.w.Header().Add("Warning", header)
}
