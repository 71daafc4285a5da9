package gantrytest

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gantry.dev/gantry/internal/config"
)

// recorded is a request and the audit events that kube-apiserver 1.36.3 wrote of it under testdata/audit_policy.yaml,
// without what differs from run to run (see normalEvent).
type recorded struct {
	Request struct {
		As, Method, Path, Body, ContentType string
		Header                              []string
	}
	Events []json.RawMessage
}

// The requests were sent in this order to an empty cluster whose user root is in system:masters and ann in no group.
func TestAuditEventsAreUpstreams(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "audit_upstream.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	c := Start(t, Options{Access: &config.Access{AnonymousAuth: true, Audit: config.Audit{PolicyFile: filepath.Join("testdata", "audit_policy.yaml"), LogPath: path}}})
	users := map[string]http.RoundTripper{
		"root": c.Config("root", "system:masters").Transport, "ann": c.Config("ann").Transport,
		"": c.TokenConfig("").Transport, "bad": c.TokenConfig("").Transport,
	}
	var all []recorded
	for line := range strings.Lines(string(data)) {
		var one recorded
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
		c.replay(t, users[one.Request.As], &one)
	}
	got := eventsOf(t, path)
	for i := range all {
		want := all[i].Events
		var about struct {
			AuditID string `json:"auditID"`
		}
		if len(want) == 0 || json.Unmarshal(want[0], &about) != nil {
			t.Fatalf("request %d has no events", i)
		}
		have := got[about.AuditID]
		if len(have) != len(want) {
			t.Errorf("%s %s: %d events, want %d", all[i].Request.Method, all[i].Request.Path, len(have), len(want))
			continue
		}
		for j := range want {
			if have[j] != string(want[j]) {
				t.Errorf("%s %s:\nupstream %s\nours     %s", all[i].Request.Method, all[i].Request.Path, want[j], have[j])
			}
		}
	}
}

// replay sends a recorded request.
func (c *Cluster) replay(t *testing.T, as http.RoundTripper, one *recorded) {
	t.Helper()
	var about struct {
		AuditID string `json:"auditID"`
	}
	if err := json.Unmarshal(one.Events[0], &about); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), one.Request.Method, "https://gantry.test"+one.Request.Path, strings.NewReader(one.Request.Body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(one.Request.Header); i += 2 {
		req.Header.Set(one.Request.Header[i], one.Request.Header[i+1])
	}
	if one.Request.ContentType != "" {
		req.Header.Set("Content-Type", one.Request.ContentType)
	}
	if one.Request.As == "bad" {
		req.Header.Set("Authorization", "Bearer badtoken")
	}
	req.Header.Set("Audit-Id", about.AuditID)
	req.Header.Set("User-Agent", "cmp")
	resp, err := as.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// eventsOf reads an audit log into normal events by audit id.
func eventsOf(t *testing.T, path string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		var event map[string]any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		id, _ := event["auditID"].(string)
		out[id] = append(out[id], normalEvent(event))
	}
	return out
}

// normalEvent takes out of an event what differs from run to run.
func normalEvent(event map[string]any) string {
	for _, key := range []string{"requestReceivedTimestamp", "stageTimestamp", "sourceIPs"} {
		delete(event, key)
	}
	if who, ok := event["user"].(map[string]any); ok {
		delete(who, "uid")
		delete(who, "extra")
	}
	dropManagedFields(event)
	text, _ := json.Marshal(event)
	for pattern, with := range map[string]string{
		`"(uid|creationTimestamp|resourceVersion|time|clusterIP|continue|remainingItemCount)":"[^"]*"`: `"$1":""`,
		`zz-gen-[a-z0-9]{5}`:             "zz-gen-X",
		`("cells":\[[^\]]*,)"[0-9]+s"\]`: `${1}"0s"]`, // a row's age
		`"clusterIPs":\["[^"]*"\]`:       "",
	} {
		text = regexp.MustCompile(pattern).ReplaceAll(text, []byte(with))
	}
	return string(text)
}

func dropManagedFields(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "managedFields")
		for _, below := range value {
			dropManagedFields(below)
		}
	case []any:
		for _, below := range value {
			dropManagedFields(below)
		}
	}
}
