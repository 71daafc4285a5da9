package server

import (
	"context"
	"fmt"

	"k8s.io/apiserver/pkg/authentication/user"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/controller/service"
	"gantry.dev/gantry/internal/controller/workload"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/scheduler"
)

// controllerManager is the field manager of everything that upstream's
// kube-controller-manager would write.
const controllerManager = "kube-controller-manager"

// runner is something that works until its context ends.
type runner interface {
	Run(ctx context.Context) error
}

// startControllers makes each controller with an identity of its own and runs it.
func (cp *ControlPlane) startControllers(run func(string, func(context.Context) error)) error {
	type made struct {
		account string
		build   func(c *client.Client, informers *client.Cache, recorder *events.Recorder) (runner, error)
	}
	log := cp.opts.Logger
	for _, m := range []made{
		{"deployment-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewDeployments(c, i, r, workload.Options{Log: log})
		}},
		{"replicaset-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewReplicaSets(c, i, r, workload.Options{Log: log})
		}},
		{"endpointslice-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return service.New(c, i, r, service.Options{Log: log})
		}},
	} {
		c, informers, err := cp.As(controllerUser(m.account), controllerManager)
		if err != nil {
			return fmt.Errorf("%s: %w", m.account, err)
		}
		built, err := m.build(c, informers, cp.Events(events.Source{Component: m.account}))
		if err != nil {
			return fmt.Errorf("%s: %w", m.account, err)
		}
		run(m.account, built.Run)
	}
	if cp.opts.NoScheduler {
		return nil
	}
	return cp.startScheduler(run)
}

func (cp *ControlPlane) startScheduler(run func(string, func(context.Context) error)) error {
	u := &user.DefaultInfo{Name: user.KubeScheduler, Groups: []string{user.AllAuthenticated}}
	c, informers, err := cp.As(u, "kube-scheduler")
	if err != nil {
		return err
	}
	recorder := cp.Events(events.Source{Component: "default-scheduler", Actions: scheduler.EventActions()})
	s, err := scheduler.New(c, informers, recorder, scheduler.Options{Log: cp.opts.Logger})
	if err != nil {
		return err
	}
	run("scheduler", s.Run)
	return nil
}
