package aggregate

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

const (
	checkAttempts = 5 // endpoints tried at once; one that answers is enough
	checkTimeout  = 5 * time.Second
)

// Check asks the server behind service for its group version's discovery document. It returns nil if one of several
// attempts, each at an endpoint chosen anew, succeeds.
func (a *Aggregator) Check(ctx context.Context, service *apiregistrationv1.APIService) error {
	connections, err := newTransport(&a.opts, &service.Spec)
	if err != nil {
		return err
	}
	defer connections.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	client := &http.Client{Transport: connections, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	results := make(chan error, checkAttempts)
	for range checkAttempts {
		go func() { results <- a.ask(ctx, client, service) }()
	}
	succeeded := false
	for range checkAttempts { // all are waited for; the first success ends the others
		if one := <-results; one == nil {
			succeeded = true
			cancel()
		} else if !succeeded {
			err = one
		}
	}
	if succeeded {
		return nil
	}
	return err
}

func (a *Aggregator) ask(ctx context.Context, client *http.Client, service *apiregistrationv1.APIService) error {
	location, err := resolve(ctx, a.opts.Reader, service.Spec.Service)
	if err != nil {
		return err
	}
	location.Scheme, location.Path = "https", "/apis/"+service.Spec.Group+"/"+service.Spec.Version
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", location, err)
	}
	transport.SetAuthProxyHeaders(request, "system:kube-aggregator", "", []string{"system:masters"}, nil)
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("failing or missing response from %v: %w", location, err)
	}
	_ = response.Body.Close() // only the code counts
	if response.StatusCode < http.StatusOK || response.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("failing or missing response from %v: bad status from %v: %d", location, location, response.StatusCode)
	}
	return nil
}
