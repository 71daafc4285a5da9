//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/test/hosts"
)

// gantryMachines starts a server and workers.
func (b *failoverBench) gantryMachines(ctx context.Context, workers int) (f *failing, err error) {
	b.say("starting %s: a server and %d workers", gantryName, workers)
	var all []*hosts.Gantry
	f = &failing{name: gantryName, check: func() error { return nil }}
	f.stop = func() error {
		var failed error
		for _, m := range all {
			failed = errors.Join(failed, m.Mend(context.Background()), m.Purge())
		}
		return failed
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.stop())
		}
	}()
	for i := range workers + 1 {
		m, err := b.hosts.AddGantry(ctx, b.opts.gantryBin, b.dir, fmt.Sprintf("gm%d", i))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
		if i == 0 {
			err = m.Up(ctx)
		} else {
			err = all[0].Join(ctx, m)
		}
		if err != nil {
			return nil, err
		}
		if _, err := m.Run(ctx, "image", "load", b.image); err != nil {
			return nil, err
		}
	}
	config, err := admin(all[0])
	if err != nil {
		return nil, err
	}
	if f.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", gantryName, err)
	}
	f.from, f.keep = all[0].Host, []string{all[0].Name}
	f.kill = func(ctx context.Context, node string) error {
		at := slices.IndexFunc(all, func(m *hosts.Gantry) bool { return m.Name == node })
		if at < 0 {
			return fmt.Errorf("there is no machine %s", node)
		}
		return all[at].Die(ctx)
	}
	return f, f.readyNodes(ctx, workers+1)
}

// gantryServers starts three servers.
func (b *failoverBench) gantryServers(ctx context.Context) (g *serverGroup, err error) {
	b.say("starting three servers of %s", gantryName)
	var all []*hosts.Gantry
	g = &serverGroup{name: gantryName}
	g.stop = func() error {
		var failed error
		for _, m := range all {
			failed = errors.Join(failed, m.Purge())
		}
		return failed
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.stop())
		}
	}()
	for i := range serverCount {
		m, err := b.hosts.AddGantry(ctx, b.opts.gantryBin, b.dir, fmt.Sprintf("gs%d", i))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
		if i == 0 {
			err = m.Up(ctx)
		} else {
			err = all[0].Join(ctx, m, "--server")
		}
		if err != nil {
			return nil, err
		}
		config, err := admin(m)
		if err != nil {
			return nil, err
		}
		g.configs, g.hosts = append(g.configs, config), append(g.hosts, m.Host)
	}
	g.pids = func() ([]int, error) {
		var pids []int
		for _, m := range all {
			pids = append(pids, m.Processes()...)
		}
		return pids, nil
	}
	g.leader = func(ctx context.Context) (int, error) {
		for i := range all {
			lease, err := g.clients[i].CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, "kube-scheduler", metav1.GetOptions{})
			if err != nil {
				return 0, fmt.Errorf("ask who leads: %w", err)
			}
			for at, m := range all {
				if holder := lease.Spec.HolderIdentity; holder != nil && *holder == m.Name {
					return at, nil
				}
			}
		}
		return 0, errors.New("nobody leads")
	}
	g.kill = func(ctx context.Context, i int) error { return all[i].Die(ctx) }
	g.back = func(ctx context.Context, i int) error {
		if err := all[i].Mend(ctx); err != nil {
			return err
		}
		time.Sleep(time.Second) // the kernel's bridge learns the port anew
		return all[i].Up(ctx)
	}
	return g, nil
}

// admin is a configuration that may do everything, at this server.
func admin(m *hosts.Gantry) (*rest.Config, error) {
	config, err := m.Admin()
	if err != nil {
		return nil, err
	}
	tune(config)
	return config, nil
}
