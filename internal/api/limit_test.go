package api

import (
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"gantry.dev/gantry/internal/api/fairness"
)

// oneAtATime has one level with one seat and no queue for everybody but the administrator.
func oneAtATime(t *testing.T) *fairness.Dispatcher {
	t.Helper()
	d, err := fairness.New(fairness.Options{Seats: 1})
	if err != nil {
		t.Fatal(err)
	}
	zero := int32(0)
	level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "level-uid"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
		Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
			BorrowingLimitPercent: &zero, LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}}}}
	schema := bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy()
	schema.Name, schema.UID, schema.Spec.PriorityLevelConfiguration.Name, schema.Spec.MatchingPrecedence = "mine", "schema-uid", "one", 100
	d.Configure([]*flowcontrolv1.FlowSchema{schema}, []*flowcontrolv1.PriorityLevelConfiguration{level})
	return d
}

// TestTooManyRequests: who finds no seat is told to come back; the administrator does; a seat comes back when its
// request ends.
func TestTooManyRequests(t *testing.T) {
	c := start(t, Options{Fairness: oneAtATime(t)})
	const path = "/api/v1/namespaces/default/configmaps"
	body, feed := io.Pipe()
	ended := make(chan int)
	began := make(chan struct{})
	go func() { // holds the seat while its body does not come
		w := c.do(t, "ann", "POST", path, began1(body, began), "Content-Type", "application/json")
		ended <- w.Code
	}()
	<-began
	w := c.do(t, "bob", "GET", path, nil)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" || w.Header().Get("X-Kubernetes-Pf-Flowschema-Uid") != "schema-uid" ||
		w.Header().Get("X-Kubernetes-Pf-Prioritylevel-Uid") != "level-uid" {
		t.Errorf("no seat: %d %v", w.Code, w.Header())
	}
	if w := c.do(t, "root", "GET", path, nil); w.Code != http.StatusOK {
		t.Errorf("the administrator: %d %s", w.Code, w.Body)
	}
	if _, err := io.Copy(feed, strings.NewReader(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}`)); err != nil {
		t.Fatal(err)
	}
	_ = feed.Close()
	if code := <-ended; code != http.StatusCreated {
		t.Errorf("the slow create: %d", code)
	}
	if w := c.do(t, "ann", "GET", path, nil); w.Code != http.StatusOK || w.Header().Get("X-Kubernetes-Pf-Flowschema-Uid") != "schema-uid" {
		t.Errorf("afterwards: %d %v", w.Code, w.Header())
	}
}

// began1 is a reader that tells when it is first read.
func began1(r io.Reader, began chan struct{}) io.Reader {
	return io.MultiReader(readerFunc(func([]byte) (int, error) {
		close(began)
		return 0, io.EOF
	}), r)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestWatchesTakeNoSeat: a watch holds its seat only until it has begun.
func TestWatchesTakeNoSeat(t *testing.T) {
	c := start(t, Options{Fairness: oneAtATime(t)})
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "seen"}})
	for range 3 {
		conn := dialWatch(t, c, "ann")
		buffer := make([]byte, 1)
		if _, err := conn.Read(buffer); err != nil {
			t.Fatal(err)
		}
	}
}

// dialWatch watches the ConfigMaps there are and their changes, as a user, until the test ends.
func dialWatch(t *testing.T, c *cluster, user string) io.ReadCloser {
	t.Helper()
	transport := c.transport(t, user)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.addr+"/api/v1/namespaces/default/configmaps?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusOK {
		t.Fatalf("watch: %s", response.Status)
	}
	return response.Body
}
