package fairness

import (
	"sync"
	"testing"
)

// TestConfigureWhileRequestsRun is for the race detector: levels change while requests are given seats.
func TestConfigureWhileRequestsRun(t *testing.T) {
	d, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	var requests sync.WaitGroup
	for range 4 {
		requests.Go(func() {
			for range 200 {
				ticket, err := d.Acquire(t.Context(), &Request{User: someone("u"), Verb: "get", IsResource: true, Resource: "pods"})
				if err != nil {
					t.Error(err)
					return
				}
				ticket.UIDs()
				ticket.Schema()
				d.Release(&ticket)
			}
		})
	}
	for range 50 {
		d.Configure(nil, nil)
	}
	requests.Wait()
}
