package server

import (
	"context"
	"fmt"
	"os"

	"k8s.io/apiserver/pkg/authentication/user"

	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/scheduler"
)

// loadScheduler reads what is configured about placing pods; without a file it is kube-scheduler's defaults.
func loadScheduler(path string) (*scheduler.Config, error) {
	if path == "" {
		return scheduler.DefaultConfig(), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the scheduler's configuration: %w", err)
	}
	config, err := scheduler.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

func (cp *term) startScheduler() error {
	u := &user.DefaultInfo{Name: user.KubeScheduler, Groups: []string{user.AllAuthenticated}}
	c, informers, err := cp.asUser(u, "kube-scheduler")
	if err != nil {
		return err
	}
	recorders := map[string]scheduler.Recorder{}
	for _, profile := range cp.schedulers.Profiles {
		recorders[profile.Name] = cp.Events(events.Source{Component: profile.Name, Actions: scheduler.EventActions()})
	}
	recorder := recorders[cp.schedulers.Profiles[0].Name]
	s, err := scheduler.New(c, informers, recorder, scheduler.Options{Config: cp.schedulers, Recorders: recorders, Metrics: cp.placing, Log: cp.opts.Logger})
	if err != nil {
		return err
	}
	cp.scheduler.Store(s)
	cp.run("scheduler", func(ctx context.Context) error {
		defer cp.scheduler.Store(nil)
		return s.Run(ctx)
	})
	return nil
}
