package gantrytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// measured is a node and two pods that use something.
type measured struct{}

func usage(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func (measured) Nodes(context.Context, string) ([]*metricsv1beta1.NodeMetrics, error) {
	return []*metricsv1beta1.NodeMetrics{{
		TypeMeta:   metav1.TypeMeta{APIVersion: "metrics.k8s.io/v1beta1", Kind: "NodeMetrics"},
		ObjectMeta: metav1.ObjectMeta{Name: "node-0"}, Usage: usage("250m", "1Gi"), Timestamp: metav1.Now(),
	}}, nil
}

func (measured) Pods(context.Context, string, string) ([]*metricsv1beta1.PodMetrics, error) {
	var list []*metricsv1beta1.PodMetrics
	for _, name := range []string{"b", "a"} {
		list = append(list, &metricsv1beta1.PodMetrics{
			TypeMeta:   metav1.TypeMeta{APIVersion: "metrics.k8s.io/v1beta1", Kind: "PodMetrics"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}}, Timestamp: metav1.Now(),
			Containers: []metricsv1beta1.ContainerMetrics{{Name: "x", Usage: usage("1m", "1Mi")}, {Name: "y", Usage: usage("2m", "3Mi")}},
		})
	}
	return list, nil
}

func TestMetricsAPI(t *testing.T) {
	dir := t.TempDir()
	c := Start(t, Options{Dir: dir, Metrics: measured{}})
	client := &http.Client{Transport: c.Config("root", "system:masters").Transport}
	ask := func(path, accept string, into any) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://gantry.test/apis/metrics.k8s.io/v1beta1"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil {
			err = json.Unmarshal(body, into)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		return response.StatusCode
	}
	var pods metricsv1beta1.PodMetricsList
	if code := ask("/namespaces/default/pods", "application/json", &pods); code != 200 || len(pods.Items) != 2 || pods.Items[0].Name != "a" {
		t.Errorf("pods: %d %+v, want a and b", code, pods)
	}
	pods = metricsv1beta1.PodMetricsList{}
	if ask("/pods?labelSelector=app%3Db", "application/json", &pods); len(pods.Items) != 1 || pods.Items[0].Name != "b" {
		t.Errorf("pods with a label: %+v, want b", pods)
	}
	pods = metricsv1beta1.PodMetricsList{}
	if ask("/namespaces/other/pods", "application/json", &pods); len(pods.Items) != 0 {
		t.Errorf("pods of another namespace: %+v", pods)
	}
	var table metav1.Table
	ask("/namespaces/default/pods", "application/json;as=Table;v=v1;g=meta.k8s.io", &table)
	if len(table.Rows) != 2 || fmt.Sprint(table.Rows[0].Cells) != "[a 3m 4Mi 0s]" || table.ColumnDefinitions[1].Name != "cpu" {
		t.Errorf("the table is %+v", table)
	}
	var status metav1.Status
	if code := ask("/nodes/other", "application/json", &status); code != http.StatusNotFound {
		t.Errorf("a node without figures answers %d %+v", code, status)
	}
	takeOver(t, c)
	c.Stop()
	c = Start(t, Options{Dir: dir, Metrics: measured{}})
	var service apiregistrationv1.APIService
	if err := c.Client.Get(t.Context(), metricsService(), &service); err != nil || service.Spec.Service == nil {
		t.Errorf("after a restart the APIService is %+v, %v; want the installed server's", service.Spec, err)
	}
	if err := c.Client.Delete(t.Context(), &service); err != nil {
		t.Fatal(err)
	}
	c.Eventually("our own APIService comes back", func() error {
		var service apiregistrationv1.APIService
		err := c.Client.Get(t.Context(), metricsService(), &service)
		if err == nil && service.Spec.Service != nil {
			err = errors.New("it is still the other's")
		}
		return err
	})
}

func metricsService() ctrlclient.ObjectKey {
	return ctrlclient.ObjectKey{Name: "v1beta1.metrics.k8s.io"}
}

// takeOver changes the APIService as metrics-server's manifest does.
func takeOver(t *testing.T, c *Cluster) {
	t.Helper()
	var service apiregistrationv1.APIService
	c.Eventually("an APIService that is available", func() error {
		err := c.Client.Get(t.Context(), metricsService(), &service)
		if err == nil && !helper.IsAPIServiceConditionTrue(&service, apiregistrationv1.Available) {
			err = fmt.Errorf("its conditions are %+v", service.Status.Conditions)
		}
		return err
	})
	next := service.DeepCopy()
	next.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: "kube-system", Name: "metrics-server"}
	next.Spec.InsecureSkipTLSVerify = true
	if err := c.Client.Update(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	c.Eventually("requests go to the installed server", func() error {
		client := &http.Client{Transport: c.Config("root", "system:masters").Transport}
		response, err := client.Get("https://gantry.test/apis/metrics.k8s.io/v1beta1/nodes")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("the answer is %d, want 503: that server is not there", response.StatusCode)
		}
		return nil
	})
}
