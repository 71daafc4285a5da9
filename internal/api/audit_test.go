package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"

	"gantry.dev/gantry/internal/api/audit"
)

const testPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: []
rules:
- level: None
  users: [quiet]
- level: Metadata
  resources: [{group: "", resources: [secrets, pods/log]}]
- level: Request
  resources: [{group: "", resources: [services]}]
- level: RequestResponse
  omitManagedFields: true
  resources: [{group: "", resources: [configmaps]}]
  namespaces: [default]
- level: Metadata
  omitStages: [RequestReceived]
`

// audited runs an API with an audit log; events returns what has been recorded since the last call.
func audited(t *testing.T) (c *cluster, events func() []auditv1.Event) {
	t.Helper()
	dir := t.TempDir()
	policy, path := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "log", "audit.log")
	if err := os.WriteFile(policy, []byte(testPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := audit.New(audit.Options{PolicyFile: policy, LogPath: path, LogMaxSizeMB: 100})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	return start(t, Options{Audit: log}), func() []auditv1.Event {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []auditv1.Event
		for line := range strings.Lines(string(data[seen:])) {
			var event auditv1.Event
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if event.APIVersion != "audit.k8s.io/v1" || event.Kind != "Event" {
				t.Errorf("a line is a %s of %s", event.Kind, event.APIVersion)
			}
			out = append(out, event)
		}
		seen = len(data)
		return out
	}
}

// stages lists the stages of events and checks that they are of one request.
func stages(t *testing.T, events []auditv1.Event) string {
	t.Helper()
	var out []string
	for _, event := range events {
		out = append(out, string(event.Stage))
		if event.AuditID != events[0].AuditID || event.AuditID == "" {
			t.Errorf("event %+v is not like its first", event)
		}
	}
	return strings.Join(out, " ")
}

func TestAuditLevels(t *testing.T) {
	c, events := audited(t)
	events()
	const maps, secrets = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/secrets"
	for _, tc := range []struct {
		name, as, method, path, body, contentType string
		stages                                    string
		level                                     auditv1.Level
		code                                      int32
		request, response                         string // parts of the recorded objects, "" none
		not                                       string // that no object has
		ref                                       auditv1.ObjectReference
	}{
		{"create", "root", "POST", maps, `{"metadata":{"name":"a"},"data":{"k":"v"}}`, "application/json", "RequestReceived ResponseComplete", "RequestResponse", 201,
			`"data":{"k":"v"}`, `"uid":`, "managedFields", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "a", APIVersion: "v1"}},
		{"get", "root", "GET", maps + "/a", "", "", "RequestReceived ResponseComplete", "RequestResponse", 200,
			"", `"data":{"k":"v"}`, "managedFields", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "a", APIVersion: "v1"}},
		{"list", "root", "GET", maps, "", "", "RequestReceived ResponseComplete", "RequestResponse", 200,
			"", `{"kind":"ConfigMapList","apiVersion":"v1"`, "managedFields", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", APIVersion: "v1"}},
		{"patch", "root", "PATCH", maps + "/a", `{"data":{"k":"w"}}`, "application/merge-patch+json", "RequestReceived ResponseComplete", "RequestResponse", 200,
			`{"data":{"k":"w"}}`, `"data":{"k":"w"}`, "managedFields", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "a", APIVersion: "v1"}},
		{"not found", "root", "GET", maps + "/none", "", "", "RequestReceived ResponseComplete", "RequestResponse", 404,
			"", `"kind":"Status"`, "", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "none", APIVersion: "v1"}},
		{"delete", "root", "DELETE", maps + "/a", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`, "application/json", "RequestReceived ResponseComplete", "RequestResponse", 200,
			`"propagationPolicy":"Background"`, `"status":"Success"`, "", auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "a", APIVersion: "v1"}},
		{"secret", "root", "POST", secrets, `{"metadata":{"name":"s"},"stringData":{"k":"hidden"}}`, "application/json", "RequestReceived ResponseComplete", "Metadata", 201,
			"", "", "hidden", auditv1.ObjectReference{Resource: "secrets", Namespace: "default", Name: "s", APIVersion: "v1"}},
		{"request only", "root", "POST", "/api/v1/namespaces/default/services", `{"metadata":{"name":"s"},"spec":{"ports":[{"port":80}]}}`, "application/json", "RequestReceived ResponseComplete", "Request", 201,
			`"sessionAffinity":"None"`, "", "clusterIP:", auditv1.ObjectReference{Resource: "services", Namespace: "default", Name: "s", APIVersion: "v1"}},
		{"stage left out", "root", "GET", "/api/v1/nodes", "", "", "ResponseComplete", "Metadata", 200, "", "", "", auditv1.ObjectReference{Resource: "nodes", APIVersion: "v1"}},
		{"quiet", "quiet", "GET", maps, "", "", "", "", 0, "", "", "", auditv1.ObjectReference{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header := []string{"Audit-ID", "id-of-" + tc.name, "User-Agent", "tests/1"}
			if tc.contentType != "" {
				header = append(header, "Content-Type", tc.contentType)
			}
			c.do(t, tc.as, tc.method, tc.path, strings.NewReader(tc.body), header...)
			got := events()
			if s := stages(t, got); s != tc.stages {
				t.Fatalf("stages %q, want %q", s, tc.stages)
			}
			if len(got) == 0 {
				return
			}
			last := got[len(got)-1]
			if last.Level != tc.level || last.ResponseStatus == nil || last.ResponseStatus.Code != tc.code || last.User.Username != tc.as ||
				last.RequestURI != tc.path || last.UserAgent != "tests/1" || string(last.AuditID) != "id-of-"+tc.name || !slices.Equal(last.SourceIPs, []string{"192.0.2.1"}) {
				t.Errorf("event %+v, status %+v", last, last.ResponseStatus)
			}
			if last.ObjectRef == nil || *last.ObjectRef != tc.ref {
				t.Errorf("refers to %+v, want %+v", last.ObjectRef, tc.ref)
			}
			if last.Annotations["authorization.k8s.io/decision"] != "allow" {
				t.Errorf("annotations %v", last.Annotations)
			}
			var request, response string
			if last.RequestObject != nil {
				request = string(last.RequestObject.Raw)
			}
			if last.ResponseObject != nil {
				response = string(last.ResponseObject.Raw)
			}
			if (tc.request == "") != (request == "") || !strings.Contains(request, tc.request) {
				t.Errorf("request %s, want %s", request, tc.request)
			}
			if (tc.response == "") != (response == "") || !strings.Contains(response, tc.response) {
				t.Errorf("response %s, want %s", response, tc.response)
			}
			if tc.not != "" && strings.Contains(request+response, tc.not) {
				t.Errorf("%s is recorded: %s %s", tc.not, request, response)
			}
		})
	}
}

func TestAuditSaysWhoAndWhy(t *testing.T) {
	c, events := audited(t)
	events()
	c.do(t, "ann", "GET", "/api/v1/nodes/n", nil)
	got := events()
	if s := stages(t, got); s != "ResponseComplete" || got[0].Annotations["authorization.k8s.io/decision"] != "forbid" ||
		got[0].ResponseStatus.Code != 403 || got[0].ResponseStatus.Reason != metav1.StatusReasonForbidden || !strings.Contains(got[0].ResponseStatus.Message, "cannot get resource") {
		t.Errorf("forbidden: %s %+v", s, got)
	}
	c.do(t, "ann", "GET", "/api/v1/namespaces/default/pods", nil)
	if got = events(); got[0].Annotations["authorization.k8s.io/reason"] != `RBAC: allowed by RoleBinding "ann/default" of ClusterRole "edit" to User "ann"` {
		t.Errorf("annotations %v", got[0].Annotations)
	}
	c.do(t, "", "GET", "/api/v1/nodes", nil, "Authorization", "Bearer nonsense")
	got = events()
	if s := stages(t, got); s != "ResponseStarted" || got[0].ResponseStatus.Code != 401 || got[0].ResponseStatus.Reason != metav1.StatusReasonUnauthorized {
		t.Errorf("unauthenticated: %s %+v", s, got)
	}
	c.do(t, "root", "GET", "/api/v1/nodes", nil, "Impersonate-User", "bob", "Impersonate-Group", "system:masters")
	got = events()
	if got[0].User.Username != "root" || got[0].ImpersonatedUser == nil || got[0].ImpersonatedUser.Username != "bob" || got[0].ResponseStatus.Code != 200 {
		t.Errorf("impersonated: %+v", got)
	}
	c.do(t, "ann", "GET", "/api/v1/nodes", nil, "Impersonate-User", "bob")
	got = events()
	if len(got) != 1 || got[0].ResponseStatus.Code != 403 || got[0].ImpersonatedUser != nil || !strings.Contains(got[0].ResponseStatus.Message, "cannot impersonate-on:user-info:list resource") {
		t.Errorf("impersonation refused: %+v", got)
	}
	c.do(t, "ann", "GET", "/healthz", nil)
	if got = events(); len(got) != 1 || got[0].ObjectRef != nil || got[0].Verb != "get" || got[0].RequestURI != "/healthz" {
		t.Errorf("path: %+v", got)
	}
}

func TestAuditOfAWatch(t *testing.T) {
	c, events := audited(t)
	clients, err := kubernetes.NewForConfig(c.config(t, "root", "", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	events()
	w, err := clients.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s := stages(t, events()); s != "RequestReceived ResponseStarted" {
		t.Errorf("while it is open: %s", s)
	}
	w.Stop()
	deadline := time.Now().Add(time.Minute)
	for {
		if got := events(); len(got) > 0 {
			if s := stages(t, got); s != "ResponseComplete" || got[0].Verb != "watch" || got[0].ResponseStatus.Code != 200 || got[0].ResponseObject != nil {
				t.Errorf("at the end: %s %+v", s, got)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the end of the watch is not recorded")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestAuditWebhook(t *testing.T) {
	lists := make(chan auditv1.EventList, 16)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var list auditv1.EventList
		if err := json.NewDecoder(r.Body).Decode(&list); err == nil {
			lists <- list
		}
	}))
	t.Cleanup(receiver.Close)
	dir := t.TempDir()
	policy, kubeconfig := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "webhook.yaml")
	config := "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: " + receiver.URL + "}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a}]\ncurrent-context: a\n"
	for path, text := range map[string]string{policy: testPolicy, kubeconfig: config} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := audit.New(audit.Options{PolicyFile: policy, WebhookConfigFile: kubeconfig, WebhookBatchMaxWait: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.Run(ctx) }()
	c := start(t, Options{Audit: log})
	c.do(t, "root", "GET", "/api/v1/namespaces/default/secrets", nil, "Audit-ID", "hook")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(lists)
	var got []auditv1.Event
	for list := range lists {
		got = append(got, list.Items...)
	}
	slices.SortFunc(got, func(a, b auditv1.Event) int { return a.StageTimestamp.Compare(b.StageTimestamp.Time) }) // batches overtake each other
	if s := stages(t, got); s != "RequestReceived ResponseComplete" || got[0].AuditID != "hook" {
		t.Errorf("received %q: %+v", s, got)
	}
}

func TestAuditOfAPanic(t *testing.T) {
	c, events := audited(t)
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	events()
	c.routes().endpoints[corev1.SchemeGroupVersion.WithResource("configmaps")].Resource = nil
	if w := c.do(t, "root", "GET", "/api/v1/namespaces/default/configmaps/p", nil); w.Code != http.StatusInternalServerError {
		t.Errorf("code %d", w.Code)
	}
	got := events()
	if s := stages(t, got); s != "RequestReceived Panic" || got[1].ResponseStatus.Code != 500 || !strings.HasPrefix(got[1].ResponseStatus.Message, "APIServer panic'd: ") {
		t.Errorf("stages %q: %+v", s, got)
	}
}
