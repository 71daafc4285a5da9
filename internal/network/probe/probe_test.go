//go:build linux

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"gantry.dev/gantry/internal/network/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// serve runs a server in the machine until the test ends.
func serve(t *testing.T, name string) {
	t.Helper()
	nettest.Need(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, name) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAsk(t *testing.T) {
	serve(t, "here")
	path := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", false)
	plan := []Question{
		{TCP, "192.0.2.1:8080", "here"}, {UDP, "192.0.2.1:8080", "here"}, {MTU, "192.0.2.1:8080", ""},
		{TCP, "192.0.2.1:8081", "here"}, {Denied, "192.0.2.1:1", ""}, {Denied, "192.0.2.1:8081", ""}, {TCP, "192.0.2.1:8080", "there"},
	}
	var out bytes.Buffer
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := nettest.In(t, path, func() error { // the questions are asked by other threads
		for i := range plan[:5] {
			answer := try(t.Context(), plan[i])
			if !answer.OK {
				t.Errorf("%+v: %s", plan[i], answer.Error)
			}
			if plan[i].Kind == MTU && (answer.MTU != 1500 || answer.Said != 1500) || plan[i].Kind == TCP && (answer.Peer != "192.0.2.2" || answer.Own != "192.0.2.2") {
				t.Errorf("%+v: %+v", plan[i], answer)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if code := Main([]string{"ask", string(text)}, &out, &out); code != 0 {
		t.Fatalf("Main = %d: %s", code, &out)
	}
	var answers []Answer
	if err := json.Unmarshal(out.Bytes(), &answers); err != nil || len(answers) != len(plan) {
		t.Fatalf("answers %s, %v", &out, err)
	}
	for i, want := range []string{"", "", "", "", "", "the connection was possible", "here answered, want there"} {
		if answers[i].Error != want || answers[i].OK != (want == "") {
			t.Errorf("%+v: %+v; want the error %q", plan[i], answers[i], want)
		}
	}
}

// A link in between that carries less and tells nobody is found by what does not arrive.
func TestMTUOfASilentPath(t *testing.T) {
	serve(t, "here")
	path := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", false)
	link, err := netlink.LinkByName("uplink")
	if err == nil {
		// The server's side takes packets of any size from the wire, but sends no larger ones: its
		// answers that must not be cut do not leave.
		err = netlink.LinkSetMTU(link, 1300)
	}
	if err != nil {
		t.Fatal(err)
	}
	var answer Answer
	if err := nettest.In(t, path, func() error {
		answer, err = measure(t.Context(), Question{Kind: MTU, At: "192.0.2.1:8080"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err == nil || answer.MTU != 1300 || answer.Said != 1500 || !strings.Contains(err.Error(), "above 1300 bytes are lost") {
		t.Errorf("measure = %+v, %v; want 1300 of 1500", answer, err)
	}
}
