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
	"bytes"
	"context"
	"encoding/json"
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
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

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
	objects := flag.String("objects", "", "folder of objects to exercise")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, options{*out, *cache, *runtimeConfig, *beyond, *objects}); err != nil {
		log.Fatal(err)
	}
}

// options are the flags.
type options struct{ out, cache, runtimeConfig, beyond, objects string }

// admissionPlugins are those that are on by default; objects are exercised without them.
const admissionPlugins = "CertificateApproval,CertificateSigning,CertificateSubjectRestriction,ClusterTrustBundleAttest,DefaultIngressClass," +
	"DefaultStorageClass,DefaultTolerationSeconds,LimitRanger,MutatingAdmissionPolicy,MutatingAdmissionWebhook,NamespaceLifecycle," +
	"PersistentVolumeClaimResize,PodSecurity,PodTopologyLabels,Priority,ResourceQuota,RuntimeClass,ServiceAccount," +
	"StorageObjectInUseProtection,TaintNodesByCondition,ValidatingAdmissionPolicy,ValidatingAdmissionWebhook"

func run(ctx context.Context, opts options) error {
	if opts.out == "" {
		return errors.New("-out is required")
	}
	programs, err := upstream.Build(ctx, upstream.BuildOptions{Module: "upstream/programs", Cache: opts.cache, Log: os.Stderr})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "golden-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	start := upstream.Options{Programs: programs, Dir: dir, APIOnly: true}
	if opts.runtimeConfig != "" {
		start.APIFlags = []string{"--runtime-config=" + opts.runtimeConfig}
	}
	if opts.objects != "" { // without what changes objects later
		start.APIFlags = append(start.APIFlags, "--disable-admission-plugins="+admissionPlugins, "--enable-priority-and-fairness=false")
	}
	cluster, err := upstream.Start(start)
	if err != nil {
		return err
	}
	files, err := collect(ctx, cluster, opts)
	if err := errors.Join(err, cluster.Stop()); err != nil {
		return err
	}
	if opts.beyond != "" {
		maps.DeleteFunc(files, func(name, content string) bool {
			there, err := os.ReadFile(filepath.Join(opts.beyond, name))
			return err == nil && string(there) == content
		})
	}
	return write(opts.out, files)
}

// collect waits for the server and asks it.
func collect(ctx context.Context, cluster *upstream.Cluster, opts options) (map[string]string, error) {
	do, err := newDo(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if err := await(ctx, cluster, do); err != nil {
		return nil, err
	}
	if opts.objects != "" {
		return exercise(ctx, cluster, do, opts.objects)
	}
	return surface.Collect(func(path, accept string) ([]byte, error) {
		answer, err := do(http.MethodGet, path, accept, "", nil)
		if err == nil && answer.Code != http.StatusOK {
			err = fmt.Errorf("%d: %s", answer.Code, answer.Body)
		}
		return answer.Body, err
	})
}

// doAs sends one request with an Accept header.
type doAs func(method, path, accept, contentType string, body []byte) (surface.Answer, error)

func newDo(ctx context.Context, cluster *upstream.Cluster) (doAs, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return func(method, path, accept, contentType string, body []byte) (surface.Answer, error) {
		request, err := http.NewRequestWithContext(ctx, method, config.Host+path, bytes.NewReader(body))
		if err != nil {
			return surface.Answer{}, err
		}
		request.Header.Set("Accept", accept)
		request.Header.Set("Content-Type", contentType)
		response, err := client.Do(request)
		if err != nil {
			return surface.Answer{}, err
		}
		defer func() { _ = response.Body.Close() }()
		data, err := io.ReadAll(response.Body)
		return surface.Answer{Code: response.StatusCode, Body: data, Warnings: response.Header.Values("Warning")}, err
	}, nil
}

// await returns when the server is ready.
func await(ctx context.Context, cluster *upstream.Cluster, do doAs) error {
	ready, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		answer, err := do(http.MethodGet, "/readyz", "*/*", "", nil)
		if err == nil && answer.Code == http.StatusOK {
			return nil
		}
		if err := cluster.Check(); err != nil {
			return err
		}
		select {
		case <-ready.Done():
			return fmt.Errorf("kube-apiserver does not become ready: %w", err)
		case <-ticker.C:
		}
	}
}

// exercise takes every object of a folder through the verbs of its kind.
func exercise(ctx context.Context, cluster *upstream.Cluster, do doAs, dir string) (map[string]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, path := range paths {
		document, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		before, err := values(ctx, cluster.Etcd)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		text, err := surface.Exercise(func(method, path, contentType string, body []byte) (surface.Answer, error) {
			answer, err := do(method, path, "application/json", contentType, body)
			answer.Warnings = slices.DeleteFunc(answer.Warnings, isEarly)
			return answer, err
		}, surface.Subject{Name: name, Document: document, Stored: func() (string, error) {
			return added(ctx, cluster.Etcd, before, document)
		}})
		if err != nil {
			return nil, err
		}
		files[name+".txt"] = text
	}
	return files, nil
}

// isEarly recognizes warnings of what only releases after 1.36 deprecate: a program without the minor
// version in it, like the pinned one, warns of everything.
func isEarly(warning string) bool {
	_, after, found := strings.Cut(warning, "is deprecated in v1.")
	minor, _, _ := strings.Cut(after, "+")
	number, err := strconv.Atoi(minor)
	return found && err == nil && number > 36
}

// added describes the value that is new in etcd and has the object's name.
func added(ctx context.Context, etcd string, before map[string][]byte, document []byte) (string, error) {
	var object struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return "", err
	}
	after, err := values(ctx, etcd)
	if err != nil {
		return "", err
	}
	for key, value := range after {
		if _, old := before[key]; !old && strings.HasSuffix(key, "/"+object.Metadata.Name) {
			return surface.DescribeStored(key, value)
		}
	}
	return "nothing", nil
}

// values reads everything in etcd through its JSON gateway.
func values(ctx context.Context, etcd string) (map[string][]byte, error) {
	body, err := json.Marshal(map[string][]byte{"key": []byte("/registry/"), "range_end": []byte("/registry0")})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, etcd+"/v3/kv/range", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		KVs []struct{ Key, Value []byte } `json:"kvs"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("decode etcd's answer: %w", err)
	}
	out := map[string][]byte{}
	for _, kv := range answer.KVs {
		out[string(kv.Key)] = kv.Value
	}
	return out, nil
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
