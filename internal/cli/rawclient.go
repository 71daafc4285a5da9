package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// serverRow is one of the servers that keep the data, as the API lists them.
type serverRow struct {
	Name    string `json:"name"`
	Learner bool   `json:"learner"`
	Leader  bool   `json:"leader"`
}

// rawClient asks for what is no object of the API.
type rawClient struct {
	web  *http.Client
	host string
}

// rawClient is machineClient with one for all else of the same cluster.
func (a *app) rawClient(cmd *cobra.Command, t *appTarget) (client.Client, *rawClient, error) {
	c, err := a.machineClient(cmd, t)
	if err != nil {
		return nil, nil, err
	}
	config, err := a.clusterOf(cmd, t)
	if err != nil {
		return nil, nil, err
	}
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	return c, &rawClient{web, strings.TrimSuffix(config.Host, "/")}, nil
}

// servers are those that keep the data.
func (c *rawClient) servers(ctx context.Context) (all []serverRow, err error) {
	return all, c.ask(ctx, http.MethodGet, "/gantry/v1/servers", nil, &all)
}

// answerError is an answer that is no success.
type answerError struct {
	code int
	text string
}

func (e *answerError) Error() string { return e.text }

// ask makes a request; a success is decoded into answer, if there is one.
func (c *rawClient) ask(ctx context.Context, method, path string, body io.Reader, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, c.host+path, body)
	if err != nil {
		return fmt.Errorf("prepare a request: %w", err)
	}
	response, err := c.web.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return &answerError{response.StatusCode, errorText(response.Status, text)}
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// errorText is what an answer says was wrong: a Status's message, or the text as it is.
func errorText(status string, body []byte) string {
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) == nil && said.Message != "" {
		return said.Message
	}
	if text := strings.TrimSpace(string(body)); text != "" {
		return text
	}
	return status
}
