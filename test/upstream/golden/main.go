// Golden writes down what upstream's kube-apiserver serves, for Gantry's tests to compare with.
//
// From the folder test/:
//
//	go run ./upstream/golden -out ../internal/api/testdata/upstream
//	go run ./upstream/golden -out ../internal/api/testdata/upstream-all -runtime-config api/all=true -beyond ../internal/api/testdata/upstream
//
// It builds the pinned upstream programs unless the cache has them, starts etcd and kube-apiserver
// with data of their own in a temporary folder, and ends them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/internal/api/surface"
	"gantry.dev/gantry/test/upstream"
)

// startTimeout is how long kube-apiserver has to become ready.
const startTimeout = time.Minute

func main() {
	out := flag.String("out", "", "folder to write to; required")
	cache := flag.String("cache", "../.cache/upstream", "folder that keeps the upstream programs")
	runtimeConfig := flag.String("runtime-config", "", "kube-apiserver's --runtime-config")
	beyond := flag.String("beyond", "", "folder of an earlier run; files that are the same there are not written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *cache, *runtimeConfig, *beyond); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out, cache, runtimeConfig, beyond string) error {
	if out == "" {
		return errors.New("-out is required")
	}
	programs, err := upstream.Build(ctx, upstream.BuildOptions{Module: "upstream/programs", Cache: cache, Log: os.Stderr})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "golden-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	opts := upstream.Options{Programs: programs, Dir: dir, APIOnly: true}
	if runtimeConfig != "" {
		opts.APIFlags = []string{"--runtime-config=" + runtimeConfig}
	}
	cluster, err := upstream.Start(opts)
	if err != nil {
		return err
	}
	files, err := collect(ctx, cluster)
	if err := errors.Join(err, cluster.Stop()); err != nil {
		return err
	}
	if beyond != "" {
		maps.DeleteFunc(files, func(name, content string) bool {
			there, err := os.ReadFile(filepath.Join(beyond, name))
			return err == nil && string(there) == content
		})
	}
	return write(out, files)
}

// collect waits for the server and asks it.
func collect(ctx context.Context, cluster *upstream.Cluster) (map[string]string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	get := func(path, accept string) ([]byte, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Accept", accept)
		response, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", response.Status, body)
		}
		return body, err
	}
	ready, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := get("/readyz", "*/*")
		if err == nil {
			return surface.Collect(get)
		}
		if err := cluster.Check(); err != nil {
			return nil, err
		}
		select {
		case <-ready.Done():
			return nil, fmt.Errorf("kube-apiserver does not become ready: %w", err)
		case <-ticker.C:
		}
	}
}

// write replaces the text files in dir.
func write(dir string, files map[string]string) error {
	old, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
