package server

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apiserver/pkg/authentication/user"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/autoscale"
	"gantry.dev/gantry/internal/controller/disruption"
	"gantry.dev/gantry/internal/controller/gc"
	"gantry.dev/gantry/internal/controller/job"
	"gantry.dev/gantry/internal/controller/namespace"
	nodecontroller "gantry.dev/gantry/internal/controller/node"
	"gantry.dev/gantry/internal/controller/podgc"
	"gantry.dev/gantry/internal/controller/policy"
	"gantry.dev/gantry/internal/controller/quota"
	"gantry.dev/gantry/internal/controller/service"
	"gantry.dev/gantry/internal/controller/serviceaccount"
	"gantry.dev/gantry/internal/controller/workload"
	"gantry.dev/gantry/internal/events"
)

// controllerManager is the field manager of everything that upstream's
// kube-controller-manager would write.
const controllerManager = "kube-controller-manager"

// controllersUser is who upstream's controllers share their informers as.
func controllersUser() user.Info {
	return &user.DefaultInfo{Name: user.KubeControllerManager, Groups: []string{user.AllAuthenticated}}
}

// idle does nothing until its context ends.
type idle struct{}

// Run implements runner.
func (idle) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// runner is something that works until its context ends.
type runner interface {
	Run(ctx context.Context) error
}

// made is a controller by the account whose rights it has.
type made struct {
	account string
	build   func(c *client.Client, informers *client.Cache, recorder *events.Recorder) (runner, error)
}

// startControllers makes each controller with an identity of its own and runs it.
func (cp *term) startControllers() error {
	for _, m := range slices.Concat(cp.workloadControllers(), cp.clusterControllers(), cp.storageControllers()) {
		if slices.Contains(cp.opts.WithoutControllers, m.account) {
			continue
		}
		c, informers, err := cp.as(client.Options{
			User: controllerUser(m.account), Manager: controllerManager,
			Lister: controllersUser(),
		}, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", m.account, err)
		}
		built, err := m.build(c, informers, cp.Events(events.Source{Component: eventSource(m.account)}))
		if err != nil {
			return fmt.Errorf("%s: %w", m.account, err)
		}
		cp.run(m.account, built.Run)
	}
	if err := cp.startAccessControllers(); err != nil {
		return err
	}
	if err := cp.startGateway(); err != nil {
		return err
	}
	cp.run("platform", cp.runPlatform)
	cp.run("addons", cp.runAddons)
	cp.run("backups", cp.runBackups)
	if cp.opts.Endpoint != nil {
		cp.run("endpoints of the API", cp.keepEndpoints)
	}
	if cp.opts.NoScheduler {
		return nil
	}
	return cp.startScheduler()
}

// workloadControllers make pods, or say how many may be disrupted.
func (cp *ControlPlane) workloadControllers() []made {
	log := cp.opts.Logger
	return []made{
		{"deployment-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewDeployments(c, i, r, workload.Options{Log: log})
		}},
		{"replicaset-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewReplicaSets(c, i, r, workload.Options{Log: log})
		}},
		{"replication-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewReplicationControllers(c, i, r, workload.Options{Log: log})
		}},
		{"job-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return job.New(c, i, r, job.Options{Log: log})
		}},
		{"cronjob-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return job.NewCronJobs(c, i, r, job.Options{Log: log})
		}},
		{"ttl-after-finished-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return job.NewTTL(c, i, job.Options{Log: log})
		}},
		{"disruption-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return disruption.New(c, i, r, disruption.Options{Log: log})
		}},
		{"statefulset-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			gated := utilfeature.DefaultFeatureGate.Enabled("MaxUnavailableStatefulSet")
			return workload.NewStatefulSets(c, i, r, workload.Options{MaxUnavailable: gated, Log: log})
		}},
		{"daemon-set-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return workload.NewDaemonSets(c, i, r, workload.Options{Log: log})
		}},
	}
}

// clusterControllers look after everything that is neither a workload nor storage.
func (cp *ControlPlane) clusterControllers() []made {
	log := cp.opts.Logger
	return []made{
		{"endpointslice-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return service.New(c, i, r, service.Options{Log: log})
		}},
		{"service-account-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return serviceaccount.New(c, i, serviceaccount.Options{RootCA: cp.opts.RootCA, Log: log})
		}},
		{"namespace-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			kinds := func() ([]controller.Kind, error) {
				return cp.kinds(func(r *registry.Resource) bool { return r.Namespaced }), nil
			}
			return namespace.New(c, i, namespace.Options{Kinds: kinds, Log: log})
		}},
		{"generic-garbage-collector", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			kinds := func() []controller.Kind { return cp.kinds(collectable) }
			return gc.New(c, i, r, gc.Options{Kinds: kinds, Changed: cp.registry.Changed, Sync: cp.store.Sync, Log: log})
		}},
		{"node-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return nodecontroller.New(c, i, r, nodecontroller.Options{ClusterCIDR: cp.opts.PodCIDR, Heartbeats: cp.heartbeats, Log: log})
		}},
		{"node-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return nodecontroller.NewEvictor(c, i, cp.Events(events.Source{Component: "taint-eviction-controller"}), nodecontroller.EvictorOptions{DefaultSeconds: cp.tolerations().Unreachable, Log: log})
		}},
		{"resourcequota-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return quota.New(c, i, quota.Options{Counter: cp.admission.Counter(), Log: log})
		}},
		{"validatingadmissionpolicy-status-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return policy.New(c, i, policy.Options{Check: cp.admission.CheckTypes, Log: log})
		}},
		{"service-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			if cp.opts.NoLoadBalancer {
				return idle{}, nil
			}
			return service.NewBalancer(c, i, r, service.BalancerOptions{Reserved: cp.reservedPorts(), Log: log})
		}},
		{"ttl-controller", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return nodecontroller.NewTTL(c, i, log)
		}},
		{"legacy-service-account-token-cleaner", func(c *client.Client, _ *client.Cache, _ *events.Recorder) (runner, error) {
			return serviceaccount.NewCleaner(c, serviceaccount.CleanerOptions{Log: log})
		}},
		{"horizontal-pod-autoscaler", func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return autoscale.New(c, i, autoscale.Options{Config: cp.local(controllerUser("horizontal-pod-autoscaler"), controllerManager)})
		}},
		{"pod-garbage-collector", func(c *client.Client, _ *client.Cache, _ *events.Recorder) (runner, error) {
			return podgc.New(c, podgc.Options{Log: log})
		}},
	}
}

// reservedPorts are ports of the nodes that this server needs.
func (cp *ControlPlane) reservedPorts() []int32 {
	if cp.opts.Endpoint == nil {
		return nil
	}
	return []int32{int32(cp.opts.Endpoint().Port())}
}

// eventSource is the component that upstream names in the events of a controller.
func eventSource(account string) string {
	switch account {
	case "disruption-controller":
		return "controllermanager"
	case "endpointslice-controller":
		return "endpoint-slice-controller"
	case "daemon-set-controller":
		return "daemonset-controller"
	case "generic-garbage-collector":
		return "garbage-collector-controller"
	case "persistent-volume-binder":
		return "persistentvolume-controller"
	case "ephemeral-volume-controller":
		return "ephemeral_volume"
	case "expand-controller":
		return "volume_expand"
	}
	return account
}

// collectable excludes what nobody owns or that is owned only in name: events.
func collectable(r *registry.Resource) bool { return r.Resource.Resource != "events" }

// kinds lists the kinds served that satisfy want.
func (cp *ControlPlane) kinds(want func(*registry.Resource) bool) []controller.Kind {
	var kinds []controller.Kind
	for _, r := range cp.registry.Resources() {
		// Other versions show the same objects; what cannot be watched is not stored.
		if r.Primary && slices.Contains(r.Verbs, "watch") && want(r) {
			kinds = append(kinds, controller.Kind{GVK: r.Kind, Resource: r.Resource.Resource, Namespaced: r.Namespaced})
		}
	}
	return kinds
}
