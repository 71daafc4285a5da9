package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// statusTimeout bounds the whole of "gantry status".
const statusTimeout = 10 * time.Second

// statusDocument is what "status --json" prints.
type statusDocument struct {
	Server      string             `json:"server"`
	Nodes       []nodeStatus       `json:"nodes"`
	Pods        map[string]int     `json:"pods"`        // by phase
	Deployments []deploymentStatus `json:"deployments"` // those of no application

	Apps         []appStatusRow `json:"apps"`
	Costs        []nodeCost     `json:"costs,omitempty"`        // a node
	Certificates []certificate  `json:"certificates,omitempty"` // the first to end first
}

type nodeStatus struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Address string `json:"address"`
	Version string `json:"version"`
	Age     string `json:"age"`
}

type deploymentStatus struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Ready     int32  `json:"ready"`
	Desired   int32  `json:"desired"`
}

func (a *app) statusCommand() *cobra.Command {
	f := &appFlags{}
	cmd := f.register(&cobra.Command{
		Use: "status [APP]", Short: "Show the cluster in one screen, or one application", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 || f.app != "" {
				return a.appStatus(cmd, f, first(args))
			}
			restConfig, err := a.clusterOf(cmd, &appTarget{context: f.context})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), statusTimeout)
			defer cancel()
			doc, err := readStatus(ctx, restConfig)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(doc)
			}
			return a.printStatus(doc, time.Now())
		},
	})
	cmd.GroupID = groupCluster
	return cmd
}

func readStatus(ctx context.Context, restConfig *rest.Config) (statusDocument, error) {
	client, err := rest.HTTPClientFor(restConfig)
	if err != nil {
		return statusDocument{}, fmt.Errorf("prepare to ask %s: %w", restConfig.Host, err)
	}
	var nodes corev1.NodeList
	var pods corev1.PodList
	var deployments appsv1.DeploymentList
	leaf, shown := certificate{}, false
	for path, into := range map[string]any{"/api/v1/nodes": &nodes, "/api/v1/pods": &pods, "/apis/apps/v1/deployments": &deployments} {
		state, err := getJSON(ctx, client, restConfig.Host+path, into)
		if err != nil {
			return statusDocument{}, err
		}
		leaf, shown = leafOf(state)
	}
	doc := summarize(restConfig.Host, nodes, pods, deployments, time.Now())
	if shown {
		doc.Certificates = append(doc.Certificates, leaf)
	}
	cluster, err := deploy.Connect(restConfig)
	if err != nil {
		return doc, err
	}
	return doc, doc.readPlatform(ctx, cluster)
}

// getJSON reads an object. It tells what the server showed of itself.
func getJSON(ctx context.Context, client *http.Client, url string, into any) (*tls.ConnectionState, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("the cluster does not answer: %w; start it with \"gantry up\"", err))
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		err := fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(body)))
		if response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden {
			return nil, withCode(exitUnreachable, err)
		}
		return nil, err
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, errors.Join(err, ctx.Err()))
	}
	return response.TLS, nil
}

// summarize is pure.
func summarize(server string, nodes corev1.NodeList, pods corev1.PodList, deployments appsv1.DeploymentList, now time.Time) statusDocument {
	doc := statusDocument{Server: server, Nodes: []nodeStatus{}, Pods: map[string]int{}, Deployments: []deploymentStatus{}, Apps: []appStatusRow{}}
	for _, node := range nodes.Items {
		n := nodeStatus{Name: node.Name, Version: node.Status.NodeInfo.KubeletVersion, Age: age(now.Sub(node.CreationTimestamp.Time))}
		for _, c := range node.Status.Conditions {
			n.Ready = n.Ready || (c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue)
		}
		for _, addr := range node.Status.Addresses {
			if addr.Type == corev1.NodeInternalIP && n.Address == "" {
				n.Address = addr.Address
			}
		}
		doc.Nodes = append(doc.Nodes, n)
	}
	for _, pod := range pods.Items {
		doc.Pods[string(pod.Status.Phase)]++
	}
	for _, d := range deployments.Items {
		if d.Labels[v1alpha1.LabelApp] != "" {
			continue
		}
		desired := int32(1)
		if d.Spec.Replicas != nil {
			desired = *d.Spec.Replicas
		}
		doc.Deployments = append(doc.Deployments, deploymentStatus{d.Namespace, d.Name, d.Status.ReadyReplicas, desired})
	}
	return doc
}

// printStatus prints the cluster in one screen, then a line an application.
func (a *app) printStatus(doc statusDocument, now time.Time) error {
	rows := slices.Concat(statusRows(doc), costRows(doc.Costs), certificateRows(doc.Certificates, now))
	if err := a.printTable(rows); err != nil {
		return err
	}
	if len(doc.Apps) == 0 {
		return nil
	}
	if err := a.printf("\n"); err != nil {
		return err
	}
	if err := a.printTable(appTable(doc.Apps)); err != nil {
		return err
	}
	said := false
	for i := range doc.Apps {
		one := &doc.Apps[i]
		if one.Trouble == "" {
			continue
		}
		if !said {
			said = true
			if err := a.printf("\n"); err != nil {
				return err
			}
		}
		if err := a.printf("! %s: %s\n", one.Name, one.Trouble); err != nil {
			return err
		}
	}
	return nil
}

func statusRows(doc statusDocument) [][]string {
	rows := [][]string{{"cluster", doc.Server}}
	for _, n := range doc.Nodes {
		state := "not ready"
		if n.Ready {
			state = "ready"
		}
		rows = append(rows, []string{"node", n.Name, state, n.Address, n.Version, n.Age})
	}
	var phases []string
	for _, phase := range []corev1.PodPhase{corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown} {
		if count := doc.Pods[string(phase)]; count > 0 {
			phases = append(phases, fmt.Sprintf("%d %s", count, strings.ToLower(string(phase))))
		}
	}
	if len(phases) == 0 {
		phases = []string{"none"}
	}
	rows = append(rows, []string{"pods", strings.Join(phases, ", ")})
	for _, d := range doc.Deployments {
		rows = append(rows, []string{"deployment", d.Namespace + "/" + d.Name, fmt.Sprintf("%d of %d ready", d.Ready, d.Desired)})
	}
	return rows
}
