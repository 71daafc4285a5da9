package robustness

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// api is one client of one server, with connections of its own. It does not repeat anything by itself.
type api struct {
	server    int
	base      string // https://ADDRESS:PORT
	namespace string
	client    *http.Client
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func newAPI(server int, address, namespace string, trust *tls.Config, dial dialer) *api {
	return &api{server: server, base: "https://" + address, namespace: namespace, client: &http.Client{Transport: &http.Transport{
		DialContext: dial, TLSClientConfig: trust.Clone(), MaxIdleConnsPerHost: 4, IdleConnTimeout: 20 * time.Second, TLSHandshakeTimeout: 3 * time.Second,
	}}}
}

// requestLimit is how long a client waits for an answer.
const requestLimit = 5 * time.Second

// object is what is read of a ConfigMap, a list of them or a Status.
type object struct {
	Kind     string            `json:"kind,omitempty"`
	Version  string            `json:"apiVersion,omitempty"`
	Metadata metadata          `json:"metadata"`
	Data     map[string]string `json:"data,omitempty"`
	Items    []object          `json:"items,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Message  string            `json:"message,omitempty"`
	Code     int               `json:"code,omitempty"`
	Spec     *leaseSpec        `json:"spec,omitempty"`
}

type leaseSpec struct {
	Holder string `json:"holderIdentity"`
}

type metadata struct {
	Name            string            `json:"name,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Continue        string            `json:"continue,omitempty"`
}

func (m metadata) revision() int64 {
	rv, _ := strconv.ParseInt(m.ResourceVersion, 10, 64) // 0 when there is none
	return rv
}

// request asks and gives the outcome as the history has it. write says that an answer which did not come leaves it open.
func (a *api) request(ctx context.Context, method, path string, body any, write bool) (object, Outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	open := Refused
	if write {
		open = Unknown
	}
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return object{}, Refused, err.Error()
		}
		content = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.base+path, content)
	if err != nil {
		return object{}, Refused, err.Error()
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(r)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			open = Refused // nothing was sent
		}
		return object{}, open, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	var got object
	text, err := io.ReadAll(response.Body)
	if err == nil {
		err = json.Unmarshal(text, &got)
	}
	if err != nil {
		return object{}, open, fmt.Sprintf("%s: %v: %.200s", response.Status, err, text)
	}
	if response.StatusCode < 300 {
		return got, Done, ""
	}
	message := fmt.Sprintf("%s: %s: %s", response.Status, got.Reason, got.Message)
	switch got.Reason {
	case "AlreadyExists":
		return got, Exists, message
	case "Conflict":
		return got, Conflict, message
	case "NotFound":
		return got, Missing, message
	case "TooManyRequests", "Forbidden", "Unauthorized":
		return got, Refused, message
	}
	return got, open, message
}

func (a *api) maps() string { return "/api/v1/namespaces/" + a.namespace + "/configmaps" }

// valueKey is where an object has its value.
const valueKey = "value"

func configMap(key, value string, rv int64) object {
	o := object{Kind: "ConfigMap", Version: "v1", Metadata: metadata{Name: key}, Data: map[string]string{valueKey: value}}
	if rv != 0 {
		o.Metadata.ResourceVersion = strconv.FormatInt(rv, 10)
	}
	return o
}

// do sends a request of the load and fills in its answer.
func (a *api) do(ctx context.Context, h *History, op Op) Op {
	op.Server = a.server
	var got object
	op.Call = h.Now()
	switch op.Verb {
	case Create:
		got, op.Outcome, op.Message = a.request(ctx, http.MethodPost, a.maps(), configMap(op.Key, op.Value, 0), true)
	case Update:
		got, op.Outcome, op.Message = a.request(ctx, http.MethodPut, a.maps()+"/"+op.Key, configMap(op.Key, op.Value, op.RV), true)
	case Delete:
		options := map[string]any{
			"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": map[string]string{"resourceVersion": strconv.FormatInt(op.RV, 10)},
		}
		got, op.Outcome, op.Message = a.request(ctx, http.MethodDelete, a.maps()+"/"+op.Key, options, true)
	case Get:
		got, op.Outcome, op.Message = a.request(ctx, http.MethodGet, a.maps()+"/"+op.Key, nil, false)
	}
	op.Return = h.Now()
	if op.Outcome == Done {
		op.GotRV, op.GotValue = got.Metadata.revision(), got.Data[valueKey]
	}
	if op.Verb == Delete {
		op.GotRV, op.GotValue = 0, ""
	}
	return op
}

// list reads all keys.
func (a *api) list(ctx context.Context, h *History) (Listing, Outcome, string) {
	l := Listing{Server: a.server, Call: h.Now(), Items: map[string]Version{}}
	got, outcome, message := a.request(ctx, http.MethodGet, a.maps(), nil, false)
	l.Return, l.RV = h.Now(), got.Metadata.revision()
	for _, item := range got.Items {
		if isKey(item.Metadata.Name) {
			l.Items[item.Metadata.Name] = Version{item.Data[valueKey], item.Metadata.revision()}
		}
	}
	return l, outcome, message
}

// holder is who holds the Lease at a path.
func (a *api) holder(ctx context.Context, path string) (string, Outcome, string) {
	got, outcome, message := a.request(ctx, http.MethodGet, path, nil, false)
	if outcome != Done || got.Spec == nil {
		return "", outcome, message
	}
	return got.Spec.Holder, outcome, message
}

// ready asks whether the server is.
func (a *api) ready(ctx context.Context) (Outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+"/readyz", nil)
	if err != nil {
		return Refused, err.Error()
	}
	response, err := a.client.Do(r)
	if err != nil {
		return Refused, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return Refused, fmt.Sprintf("%s: %v: %.300s", response.Status, err, text)
	}
	return Done, ""
}
