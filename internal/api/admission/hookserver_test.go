package admission_test

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// hookServer is a webhook over TLS. It keeps what it was asked.
type hookServer struct {
	*httptest.Server
	answer func(path string, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

	mu    sync.Mutex // guards the field below
	asked []asked
}

type asked struct {
	path    string
	request *admissionv1.AdmissionRequest
}

func newHookServer(t *testing.T, answer func(path string, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *hookServer {
	t.Helper()
	h := &hookServer{answer: answer}
	h.Server = httptest.NewTLSServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var review admissionv1.AdmissionReview
	if err == nil {
		err = json.Unmarshal(body, &review)
	}
	if err != nil || review.Request == nil {
		http.Error(w, "no review", http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	h.asked = append(h.asked, asked{r.URL.Path, review.Request})
	h.mu.Unlock()
	response := h.answer(r.URL.Path, review.Request)
	if response == nil {
		<-r.Context().Done() // a webhook that hangs
		return
	}
	response.UID = review.Request.UID
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
}

// take returns what was asked since it was last called.
func (h *hookServer) take() []asked {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.asked
	h.asked = nil
	return out
}

// config is how the server is reached at path.
func (h *hookServer) config(path string) admissionregistrationv1.WebhookClientConfig {
	url := h.URL + path
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	return admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca}
}

func allow(patches ...string) *admissionv1.AdmissionResponse {
	r := &admissionv1.AdmissionResponse{Allowed: true}
	if len(patches) > 0 {
		kind := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType = []byte(patches[0]), &kind
	}
	return r
}

func deny(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: message, Code: http.StatusTeapot}}
}

// rule is about creates and updates of a resource.
func rule(group, version, resource string, ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
	if len(ops) == 0 {
		ops = []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update}
	}
	return []admissionregistrationv1.RuleWithOperations{{Operations: ops, Rule: admissionregistrationv1.Rule{
		APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource},
	}}}
}

func inNamespace(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: name}}
}

// validating makes a configuration with one webhook, which the test may change, and removes it
// when the test ends.
func validating(t *testing.T, c kubernetes.Interface, h *hookServer, name, ns string, change func(*admissionregistrationv1.ValidatingWebhook)) {
	t.Helper()
	none := admissionregistrationv1.SideEffectClassNone
	hook := admissionregistrationv1.ValidatingWebhook{
		Name: name + ".example.test", ClientConfig: h.config("/" + name), Rules: rule("", "v1", "configmaps"), SideEffects: &none,
		AdmissionReviewVersions: []string{"v1"}, NamespaceSelector: inNamespace(ns),
	}
	if change != nil {
		change(&hook)
	}
	_, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.ValidatingWebhook{hook},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// mutating is validating for a mutating webhook.
func mutating(t *testing.T, c kubernetes.Interface, h *hookServer, name, ns string, change func(*admissionregistrationv1.MutatingWebhook)) {
	t.Helper()
	none := admissionregistrationv1.SideEffectClassNone
	hook := admissionregistrationv1.MutatingWebhook{
		Name: name + ".example.test", ClientConfig: h.config("/" + name), Rules: rule("", "v1", "configmaps"), SideEffects: &none,
		AdmissionReviewVersions: []string{"v1"}, NamespaceSelector: inNamespace(ns),
	}
	if change != nil {
		change(&hook)
	}
	_, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.MutatingWebhook{hook},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
