package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/network/check"
	"gantry.dev/gantry/internal/platform/deploy"
)

// maxProbeLog bounds what is read of a probe's log.
const maxProbeLog = 8 << 20

func (a *app) networkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Short: "Look at the network between nodes", GroupID: groupCluster,
		Args: unknownCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.networkCheckCommand())
	return cmd
}

func (a *app) networkCheckCommand() *cobra.Command {
	f := &appFlags{}
	cmd := &cobra.Command{
		Use: "check", Short: "Prove that pods, services, names, policies and large packets work between all nodes", Args: exactArgs(),
		Long: "Run two small pods on each node, in a namespace of their own that is removed afterwards, and ask from each node to each:\n" +
			"pods by TCP and UDP, a service, its name, a NetworkPolicy, and how large a packet arrives.\n" +
			"It ends with 1 and says what is broken and what helps, if anything is.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, _, err := a.connect(cmd, f)
			if err != nil {
				return err
			}
			a.announce(t, "network check")
			report, err := check.Run(cmd.Context(), check.Options{
				Client: t.cluster.Client, Say: a.progress, Logs: podLog(t.cluster),
				Image: func(ctx context.Context, project string) (string, error) {
					return a.backend.ProbeImage(ctx, t.cluster.Config, project)
				},
			})
			if err != nil {
				return err
			}
			return a.printNetworkReport(report)
		},
	}
	cmd.Flags().StringVar(&f.context, "context", "", "the cluster, one of \"gantry context ls\" (default: the current one)")
	return cmd
}

// podLog reads what a pod has said.
func podLog(cluster *deploy.Cluster) func(ctx context.Context, namespace, pod string) ([]byte, error) {
	return func(ctx context.Context, namespace, pod string) ([]byte, error) {
		address := strings.TrimSuffix(cluster.Host, "/") + "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/log"
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fmt.Errorf("asking for the log of pod %s: %w", pod, err)
		}
		answer, err := cluster.HTTP.Do(request)
		if err != nil {
			return nil, err
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(io.LimitReader(answer.Body, maxProbeLog))
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(text)))
		}
		return text, err
	}
}

func (a *app) printNetworkReport(report check.Report) error {
	broken := fmt.Errorf("%d problems", len(report.Problems))
	if len(report.Problems) == 0 {
		broken = nil
	}
	if a.json {
		if err := a.printJSON(report); err != nil {
			return err
		}
		return broken
	}
	rows := [][]string{{"FROM", "TO", "PODS", "SERVICE", "DNS", "POLICY", "MTU"}}
	for _, p := range report.Pairs {
		mtu := check.Unasked
		if p.MTU > 0 {
			mtu = strconv.Itoa(p.MTU)
		}
		rows = append(rows, []string{p.From, p.To, p.Pods, p.Service, p.DNS, p.Policy, mtu})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	for _, p := range report.Problems {
		if err := a.printf("problem: %s\n   cure: %s\n", p.What, p.Cure); err != nil {
			return err
		}
	}
	return broken
}
