package join

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// signLimit is how long an answer to a request for a certificate may take.
const signLimit = 30 * time.Second

// API speaks to the servers with a token, or with the certificate of Transport.
type API struct {
	Transport http.RoundTripper
	Token     string // bearer token; "" sends none
}

// RefusedError is an answer of the API that will not change by itself.
type RefusedError struct {
	Code    int    // HTTP
	Message string // the API's
}

func (e *RefusedError) Error() string { return e.Message }

// Settings reads what the nodes of the cluster agree on.
func (a API) Settings(ctx context.Context) (Settings, error) {
	var cm corev1.ConfigMap
	err := a.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+SettingsNamespace+"/configmaps/"+SettingsName, nil, &cm)
	if err != nil {
		return Settings{}, fmt.Errorf("reading the cluster's settings: %w", err)
	}
	return ParseSettings(cm.Data)
}

// Request asks for a certificate.
type Request struct {
	Signer  string // certificatesv1.KubeAPIServerClientKubeletSignerName or KubeletServingSignerName
	Node    string // for the request's name
	CSR     []byte // PEM
	Usages  []certificatesv1.KeyUsage
	Seconds int32 // how long the certificate should live; 0 leaves it to the signer
}

// Sign asks for a certificate and waits for it. The error is a *RefusedError when it was refused.
func (a API) Sign(ctx context.Context, r Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signLimit)
	defer cancel()
	csr := &certificatesv1.CertificateSigningRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "node-" + r.Node + "-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: r.CSR, SignerName: r.Signer, Usages: r.Usages},
	}
	if r.Seconds > 0 {
		csr.Spec.ExpirationSeconds = &r.Seconds
	}
	const path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	made := new(certificatesv1.CertificateSigningRequest)
	if err := a.Do(ctx, http.MethodPost, path, csr, made); err != nil {
		return nil, fmt.Errorf("asking for a certificate: %w", err)
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, c := range made.Status.Conditions {
			if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
				return nil, &RefusedError{Code: http.StatusForbidden, Message: cmp.Or(c.Message, "the certificate was refused")}
			}
		}
		if len(made.Status.Certificate) > 0 {
			return made.Status.Certificate, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no certificate was signed in time: request %s waits for somebody to approve it", made.Name)
		case <-ticker.C:
		}
		next := new(certificatesv1.CertificateSigningRequest)
		err := a.Do(ctx, http.MethodGet, path+"/"+made.Name, nil, next)
		if refused, ok := errors.AsType[*RefusedError](err); ok {
			return nil, refused
		}
		if err == nil {
			made = next
		}
	}
}

// Do makes one request with a JSON body, if in is not nil, and decodes the answer into out, if that is not nil.
func (a API) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding a request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+ServerName+path, body)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("Accept", "application/json")
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if a.Token != "" {
		request.Header.Set("Authorization", "Bearer "+a.Token)
	}
	response, err := a.Transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("reading an answer: %w", err)
	}
	if response.StatusCode < 300 {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("reading an answer: %w", err)
		}
		return nil
	}
	var status metav1.Status
	_ = json.Unmarshal(answer, &status) // what is no status has no message
	message := cmp.Or(status.Message, string(bytes.TrimSpace(answer)), response.Status)
	if response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests {
		return errors.New(message)
	}
	return &RefusedError{Code: response.StatusCode, Message: message}
}
