//go:build linux

package podnet

import (
	"net"
	"os"
	"testing"
)

func TestTryKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	features, err := TryKernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range features {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err) // the other tests need them all
		}
	}
	if _, err := net.InterfaceByName("try-br"); err == nil {
		t.Error("a link of the trial is on this machine")
	}
}
