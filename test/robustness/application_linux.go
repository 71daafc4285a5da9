package robustness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gantry.dev/gantry/test/machines"
)

const appURL = "https://tasks.localhost"

// application is the CRUD example behind the gateway, with its database on the worker, whose disk outlives all faults.
type application struct {
	h       *History
	clients []*http.Client // through the gateway of each server

	mu   sync.Mutex // guards the fields below
	rows *rows
	last time.Time     // a write was acknowledged
	gap  time.Duration // the longest time between two
	why  map[string]int
}

// startApplication deploys the example.
func startApplication(t *testing.T, c *cluster, h *History) *application {
	t.Helper()
	images, err := filepath.Abs("../../.cache/addons")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "../addonimages.sh", images).CombinedOutput(); err != nil {
		t.Fatalf("images of the database: %v\n%s", err, out)
	}
	a := &application{h: h, rows: newRows(), why: map[string]int{}}
	folder := filepath.Join(t.TempDir(), "tasks")
	if err := os.CopyFS(folder, os.DirFS("../../examples/tasks")); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.all {
		must(t)(m.gantry(time.Minute, "", "image", "load", filepath.Join(images, "postgres.tar")))
	}
	first := c.all[0]
	settings := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: platform}\ndata: {addon.postgres.15: 'docker.io/library/postgres:e2e', addon.postgres.17: 'docker.io/library/postgres:e2e'}\n"
	must(t)(first.gantry(time.Minute, settings, "kubectl", "apply", "-n", "gantry-system", "-f", "-"))
	for _, m := range c.all[:c.servers] { // the database goes to the worker
		must(t)(first.gantry(time.Minute, "", "kubectl", "cordon", m.name))
	}
	a.deploy(t, c, folder)
	for _, m := range c.all[:c.servers] {
		must(t)(first.gantry(time.Minute, "", "kubectl", "uncordon", m.name))
	}
	encoded := must(t)(first.gantry(time.Minute, "", "kubectl", "get", "secret", "-n", "gantry-system", "gateway-ca", "-o", `jsonpath={.data.ca\.crt}`))
	ca, err := base64.StdEncoding.DecodeString(encoded)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatalf("the gateway's authority: %q, %v", ca, err)
	}
	for i := range c.servers {
		dial, address := machines.DialIn(c.link.Outside), machines.IP(i)
		a.clients = append(a.clients, &http.Client{Timeout: requestLimit, Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial(ctx, network, net.JoinHostPort(address, "443"))
			},
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 4,
		}})
	}
	if err := await(t.Context(), time.Minute, func() error { return a.once(t.Context(), 0) }); err != nil {
		t.Fatalf("the application takes no rows: %v", err)
	}
	return a
}

func must(t *testing.T) func(string, error) string {
	t.Helper()
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// deploy compiles the example here and takes it to the cluster.
func (a *application) deploy(t *testing.T, c *cluster, folder string) {
	t.Helper()
	home := t.TempDir()
	cmd := c.all[0].command(t.Context(), "deploy")
	cmd.Dir = folder
	cmd.Env = append(cmd.Env, "HOME="+home, "XDG_CONFIG_HOME="+home, "USER=ann")
	out, err := exec.CommandContext(t.Context(), "go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOPATH", "GOFLAGS").Output()
	values := map[string]string{}
	if err == nil {
		err = json.Unmarshal(out, &values)
	}
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	values["GOPROXY"] = "off" // what the example needs is in the cache of whoever tested it
	for key, value := range values {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gantry deploy: %v\n%s", err, out)
	}
}

// run makes rows and removes some of them until ctx ends, through one gateway after the other.
func (a *application) run(ctx context.Context) {
	a.last = time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		if err := a.once(ctx, i); err != nil && ctx.Err() == nil {
			a.mu.Lock()
			text := err.Error()
			a.why[text[max(0, len(text)-80):]]++
			a.mu.Unlock()
		}
		pauseFor(ctx, 60*time.Millisecond)
	}
}

// once makes a row, and removes each third one.
func (a *application) once(ctx context.Context, i int) error {
	title := a.h.NewValue()
	a.mu.Lock()
	a.rows.titles[title] = true
	a.mu.Unlock()
	client := a.clients[i%len(a.clients)]
	var made struct {
		ID    int64
		Title string
	}
	if err := a.ask(ctx, client, http.MethodPost, "/api/tasks", map[string]string{"title": title}, http.StatusCreated, &made); err != nil {
		return err
	}
	a.mu.Lock()
	a.rows.made[made.ID] = title
	a.gap, a.last = max(a.gap, time.Since(a.last)), time.Now()
	a.rows.doomed[made.ID] = i%3 == 2
	a.mu.Unlock()
	if i%3 != 2 {
		return nil
	}
	err := a.ask(ctx, client, http.MethodDelete, fmt.Sprintf("/api/tasks/%d", made.ID), nil, http.StatusNoContent, nil)
	if err == nil {
		a.mu.Lock()
		a.rows.removed[made.ID] = true
		a.mu.Unlock()
	}
	return err
}

// ask makes one request of the application.
func (a *application) ask(ctx context.Context, client *http.Client, method, path string, body any, want int, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("write a request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, method, appURL+path, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	a.mu.Lock()
	a.rows.requests++
	a.mu.Unlock()
	err = func() error {
		response, err := client.Do(r)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != want {
			err = fmt.Errorf("%w: %s: %.60s", errAnswer, response.Status, text)
		}
		if err == nil && into != nil {
			err = json.Unmarshal(text, into)
		}
		return err
	}()
	if err != nil {
		a.mu.Lock()
		a.rows.failed++
		a.mu.Unlock()
	}
	return err
}

// errAnswer is an answer that was not wanted.
var errAnswer = errors.New("answered")

// judge reads all rows and says what is wrong with them.
func (a *application) judge(t *testing.T) string {
	t.Helper()
	ctx := t.Context()
	requests, failed := a.rows.requests, a.rows.failed // under load
	there, highest := map[int64]string{}, int64(0)
	for id := range a.rows.made {
		highest = max(highest, id)
	}
	for id := int64(1); id <= highest+50; id++ {
		var row struct {
			ID    int64
			Title string
		}
		err := await(ctx, time.Minute, func() error {
			row.ID = 0
			err := a.ask(ctx, a.clients[int(id)%len(a.clients)], http.MethodGet, fmt.Sprintf("/api/tasks/%d", id), nil, http.StatusOK, &row)
			if errors.Is(err, errAnswer) && strings.Contains(err.Error(), "404") {
				return nil
			}
			return err
		})
		if err != nil {
			t.Errorf("read row %d: %v", id, err)
			return ""
		}
		if row.ID != 0 {
			there[row.ID] = row.Title
		}
	}
	broken := a.rows.check(there)
	for _, problem := range broken[:min(len(broken), maxBroken)] {
		t.Error(problem)
	}
	text := fmt.Sprintf("the application: %d rows acknowledged, %d removals; %d of %d requests failed (%.2f%%), no row taken for %.1fs at most; lost or invented: %d\n",
		len(a.rows.made), len(a.rows.removed), failed, requests, 100*float64(failed)/float64(max(1, requests)), a.gap.Seconds(), len(broken))
	for why, n := range a.why {
		text += fmt.Sprintf("%6d %s\n", n, why)
	}
	return text
}
