//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"k8s.io/client-go/kubernetes"

	"gantry.dev/gantry/test/hosts"
	"gantry.dev/gantry/test/upstream"
)

// What makes upstream quick: heartbeats every second instead of every ten, four seconds of patience instead of fifty, and the
// tolerations that pods get by default.
const (
	tunedKubelet     = "nodeLeaseDurationSeconds: 4\nnodeStatusUpdateFrequency: 1s\n"
	tunedGrace       = "--node-monitor-grace-period=4s"
	tunedPeriod      = "--node-monitor-period=500ms"
	tunedNotReady    = "--default-not-ready-toleration-seconds=1"
	tunedUnreachable = "--default-unreachable-toleration-seconds=1"
)

// upstreamMachines returns what starts a control plane and nodes, one of which shares the control plane's machine.
func (b *failoverBench) upstreamMachines(tuned bool) func(ctx context.Context, workers int) (*failing, error) {
	return func(ctx context.Context, workers int) (f *failing, err error) {
		prefix := "ud"
		opts, kubelet := upstream.Options{Programs: b.programs.Kubernetes}, ""
		if tuned {
			prefix, kubelet = "ut", tunedKubelet
			opts.APIFlags = []string{tunedNotReady, tunedUnreachable}
			opts.ManagerFlags = []string{tunedGrace, tunedPeriod}
		}
		b.say("starting %s: a control plane and %d nodes (tuned: %t)", upstreamName, workers+1, tuned)
		var all []*hosts.Host
		for i := range workers + 1 {
			m, err := b.hosts.Add(ctx, fmt.Sprintf("%s%d", prefix, i))
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		opts.Dir, opts.Address, opts.NetNS = filepath.Join(b.dir, prefix), all[0].Address.AsSlice(), all[0].NS
		cluster, err := upstream.Start(opts)
		if err != nil {
			return nil, err
		}
		f = &failing{name: upstreamName, check: cluster.Check, stop: cluster.Stop, from: all[0], keep: []string{all[0].Name}}
		defer func() {
			if err != nil {
				err = errors.Join(err, cluster.Stop())
			}
		}()
		config, err := loadConfig(cluster.Kubeconfig)
		if err != nil {
			return nil, err
		}
		if f.client, err = kubernetes.NewForConfig(config); err != nil {
			return nil, fmt.Errorf("make a client of %s: %w", upstreamName, err)
		}
		for i, m := range all {
			err := cluster.StartNode(upstream.NodeOptions{
				Programs: b.programs, Runc: b.runc, Dir: filepath.Join(opts.Dir, m.Name), Name: m.Name, Address: m.Address.AsSlice(),
				PodCIDR: podCIDR(i), NetNS: m.NS, Images: []string{b.image}, Kubelet: kubelet,
			})
			if err != nil {
				return nil, err
			}
			if i > 0 { // who asks has a route to the pods of each
				if err := hosts.IP(ctx, "-n "+all[0].Name+" route add "+podCIDR(i)+" via "+m.Address.String()); err != nil {
					return nil, err
				}
			}
		}
		f.kill = func(ctx context.Context, node string) error {
			at := slices.IndexFunc(all, func(m *hosts.Host) bool { return m.Name == node })
			if at < 0 {
				return fmt.Errorf("there is no machine %s", node)
			}
			return errors.Join(all[at].Cut(ctx), cluster.KillNode(node))
		}
		return f, f.readyNodes(ctx, workers+1)
	}
}

func podCIDR(i int) string { return fmt.Sprintf("10.244.%d.0/24", i+1) }

// upstreamServers starts three servers: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on each.
func (b *failoverBench) upstreamServers(ctx context.Context) (*serverGroup, error) {
	b.say("starting three servers of %s", upstreamName)
	g := &serverGroup{name: upstreamName}
	var machines []upstream.Machine
	for i := range serverCount {
		m, err := b.hosts.Add(ctx, fmt.Sprintf("us%d", i))
		if err != nil {
			return nil, err
		}
		g.hosts, machines = append(g.hosts, m), append(machines, upstream.Machine{Address: m.Address.AsSlice(), NetNS: m.NS})
	}
	servers, err := upstream.StartServers(upstream.Options{Programs: b.programs.Kubernetes, Dir: filepath.Join(b.dir, "us")}, machines)
	if err != nil {
		return nil, err
	}
	g.stop = func() error {
		var failed error
		for _, s := range servers {
			failed = errors.Join(failed, s.Stop())
		}
		return failed
	}
	for _, s := range servers {
		config, err := loadConfig(s.Kubeconfig)
		if err != nil {
			return nil, errors.Join(err, g.stop())
		}
		g.configs = append(g.configs, config)
	}
	g.pids = func() ([]int, error) {
		var pids []int
		for _, s := range servers {
			pids = append(pids, s.PIDs()...)
		}
		return pids, nil
	}
	g.leader = func(ctx context.Context) (int, error) {
		for i, s := range servers {
			leads, err := s.Leads(ctx)
			if err != nil {
				return 0, err
			}
			if leads {
				return i, nil
			}
		}
		return 0, errors.New("nobody leads")
	}
	g.kill = func(ctx context.Context, i int) error {
		if err := g.hosts[i].Cut(ctx); err != nil {
			return err
		}
		servers[i].Kill()
		return nil
	}
	g.back = func(ctx context.Context, i int) error {
		return errors.Join(g.hosts[i].Mend(ctx), servers[i].Restart())
	}
	return g, nil
}
