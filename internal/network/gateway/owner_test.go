package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"gantry.dev/gantry/internal/network/gateway"
)

// TestRouteLimits: each limit holds for its own route only, is answered as HTTP says, and is counted.
func TestRouteLimits(t *testing.T) {
	release, waiting := make(chan struct{}), make(chan struct{}, 1)
	r := start(t, func(table *gateway.Table) {
		web := []gateway.Backend{{Service: "a/web:80", Weight: 1}}
		for name, limits := range map[string]*gateway.RouteLimits{"body": {BodyBytes: 10}, "flying": {Requests: 1}, "rate": {Rate: 0.001, Burst: 3}, "free": nil} {
			table.Routes["HTTPRoute/a/"+name] = []gateway.Route{{Path: gateway.PathMatch{Value: "/" + name}, Backends: web, Limits: limits}}
		}
	}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "wait" {
			waiting <- struct{}{}
			<-release
		}
		echo(w, r)
	}))
	do := func(path, body string, chunked bool) int {
		t.Helper()
		var from io.Reader = strings.NewReader(body)
		if chunked {
			from = io.MultiReader(from) // hides its length
		}
		response, err := http.Post("http://"+r.at+path, "text/plain", from)
		if err != nil {
			t.Fatal(err)
		}
		read(t, response)
		return response.StatusCode
	}
	for _, tc := range []struct {
		path, body string
		chunked    bool
		want       int
	}{
		{"/body", "0123456789", false, 200}, {"/body", "0123456789x", false, 413}, {"/body", strings.Repeat("x", 100), true, 413}, {"/free", "0123456789x", false, 200},
		{"/rate", "", false, 200}, {"/rate", "", false, 200}, {"/rate", "", false, 200}, {"/rate", "", false, 429}, {"/free", "", false, 200},
	} {
		if got := do(tc.path, tc.body, tc.chunked); got != tc.want {
			t.Errorf("%s with %d bytes, chunked %t: %d, want %d", tc.path, len(tc.body), tc.chunked, got, tc.want)
		}
	}
	first := make(chan error, 1)
	go func() {
		response, err := http.Get("http://" + r.at + "/flying?wait")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode != 200 {
				err = fmt.Errorf("the first one: %s", response.Status)
			}
		}
		first <- err
	}()
	<-waiting
	if got := do("/flying", "", false); got != 503 {
		t.Errorf("a second request at once: %d, want 503", got)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	r.eventually("room again", func() bool { return do("/flying", "", false) == 200 })

	counted := func(name string) gateway.RouteStats {
		return r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Routes["HTTPRoute/a/"+name]
	}
	r.eventually("counts by route", func() bool { return counted("rate").Requests == 4 && counted("free").Requests == 2 })
	if s := counted("rate"); s.Codes["2xx"] != 3 || s.Codes["4xx"] != 1 || s.Errors != 0 {
		t.Errorf("counts of the rate's route: %+v", s)
	}
	if s := counted("flying"); s.Codes["5xx"] == 0 || s.Errors == 0 {
		t.Errorf("counts of the flying route: %+v", s)
	}
	refused := r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Refused
	if refused["routeRate"] != 1 || refused["routeRequests"] == 0 || refused["routeBodyBytes"] == 0 {
		t.Errorf("refused: %v", refused)
	}
	// A route that is gone is forgotten with its counts.
	if err := r.g.Update(gateway.Delta{Routes: map[string][]gateway.Route{"HTTPRoute/a/rate": nil}}); err != nil {
		t.Fatal(err)
	}
	if s := counted("rate"); s.Requests != 0 {
		t.Errorf("counts of a route that is gone: %+v", s)
	}
}

// TestUnknownMethod: a call of gRPC that fits no route is not implemented here, which a client must not try again.
func TestUnknownMethod(t *testing.T) {
	r := start(t, func(table *gateway.Table) { clear(table.Routes) }, backend(t, echo))
	response, err := http.Post("http://"+r.at+"/echo.Echo/Say", "application/grpc", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	read(t, response)
	if got := response.Header.Get("Grpc-Status"); response.StatusCode != 200 || got != "12" {
		t.Errorf("%s with status %q of gRPC", response.Status, got)
	}
}
