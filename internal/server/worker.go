package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/programs"
	"gantry.dev/gantry/internal/remote"
	"gantry.dev/gantry/internal/upgrade"
)

// membership is what this machine is in which cluster, after joining one if that is asked for.
func membership(ctx context.Context, opts *UpOptions) (join.Membership, error) {
	c := &opts.Config
	member, there, err := join.ReadMembership(c.Path(join.MembershipFile))
	if err != nil {
		return join.Membership{}, err
	}
	if there && opts.Join != nil {
		opts.Steps.Say("this machine is a %s of the cluster of %v already; --join and --token are not needed", member.Role, member.Servers)
	}
	switch {
	case there && member.Role == join.Worker:
		if member, err = promote(ctx, opts, member); err != nil {
			return join.Membership{}, err
		}
	case there:
	case opts.Join != nil:
		if _, err := os.Stat(c.Path("etcd")); err == nil {
			return join.Membership{}, fmt.Errorf("%s holds a cluster of its own; \"gantry down --purge\" removes it, then this machine can join another", c.DataDir)
		}
		if opts.Join.Server {
			if opts.joining, err = joinServer(ctx, opts, nil); err == nil {
				member = opts.joining.member
			}
		} else {
			member, err = joinWorker(ctx, opts)
		}
		if err != nil {
			// Nothing runs under the name yet: the next attempt may choose another.
			return join.Membership{}, errors.Join(err, removeIdentity(*c))
		}
	default:
		return join.Membership{Role: join.Server}, nil
	}
	if err := agree(c, member.Settings); err != nil {
		return join.Membership{}, err
	}
	takeSettings(c, member.Settings)
	return member, nil
}

func removeIdentity(c config.Config) error {
	if err := os.Remove(c.Path("node.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("taking back the node's name: %w", err)
	}
	return nil
}

// takeSettings makes the configuration that of the cluster.
func takeSettings(c *config.Config, s join.Settings) {
	if !s.PodCIDR.IsValid() {
		return
	}
	c.PodCIDR, c.ServiceCIDR, c.ClusterDomain = s.PodCIDR, s.ServiceCIDR, s.ClusterDomain
}

// agree refuses what was set otherwise than the cluster has it.
func agree(c *config.Config, s join.Settings) error {
	var problems []error
	for _, one := range []struct{ key, here, there string }{
		{config.KeyPodCIDR, c.PodCIDR.String(), s.PodCIDR.String()},
		{config.KeyServiceCIDR, c.ServiceCIDR.String(), s.ServiceCIDR.String()},
		{config.KeyClusterDomain, c.ClusterDomain, s.ClusterDomain},
	} {
		if c.Given(one.key) && one.here != one.there {
			problems = append(problems, fmt.Errorf("%s says %s, but the cluster has %s: leave it out", c.Where(one.key), one.here, one.there))
		}
	}
	return errors.Join(problems...)
}

// sameCluster refuses a program that is too far from that of the cluster's servers.
func sameCluster(version string, s join.Settings) error {
	_, theirs, _ := strings.Cut(s.Version, gantrySuffix)
	return upgrade.Compatible(version, theirs)
}

// joinWorker makes this machine a worker of a cluster: it believes the cluster, gets a certificate, and writes down what it is.
func joinWorker(ctx context.Context, opts *UpOptions) (join.Membership, error) {
	c, request := &opts.Config, opts.Join
	if !c.NodeIP.IsValid() {
		return join.Membership{}, errors.New("this machine has no address at which the others reach it; give one with --node-ip")
	}
	member := join.Membership{Role: join.Worker, Servers: []string{request.Address}}
	end := opts.Steps.Begin("cluster", "found")
	cluster, err := join.Discover(ctx, request.Address, request.Token.Pin)
	servers := join.NewServers(request.Address)
	if err == nil {
		transport := servers.Transport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cluster.Pool()})
		defer transport.CloseIdleConnections()
		api := join.API{Transport: transport, Token: request.Token.Bootstrap()}
		member.Settings, err = api.Settings(ctx)
		err = tokenError(request, err)
		if err == nil {
			err = errors.Join(agree(c, member.Settings), sameCluster(opts.Version, member.Settings))
		}
		end(err)
		if err == nil {
			err = certify(ctx, opts, cluster, api)
		}
	} else {
		end(err)
	}
	if err != nil {
		return join.Membership{}, err
	}
	return member, member.Write(c.Path(join.MembershipFile))
}

// tokenError says what a refused token means.
func tokenError(request *cli.JoinRequest, err error) error {
	refused, ok := errors.AsType[*join.RefusedError](err)
	switch {
	case !ok:
		return err
	case refused.Code == http.StatusUnauthorized:
		return fmt.Errorf("the token %s is not good any more: it has expired or was revoked; \"gantry token create\" on a server makes another", request.Token.ID)
	case refused.Code == http.StatusForbidden:
		return fmt.Errorf("the token %s is not for joining as a worker: %w", request.Token.ID, err)
	}
	return err
}

// certify gets the node's certificate.
func certify(ctx context.Context, opts *UpOptions, cluster *join.Cluster, api join.API) error {
	keeper, err := newKeeper(opts, nil)
	if err != nil {
		return err
	}
	end := opts.Steps.Begin("certificate", "signed")
	err = keeper.Join(ctx, cluster, api)
	if refused, ok := errors.AsType[*join.RefusedError](err); ok {
		err = refused
	}
	end(err)
	return err
}

func newKeeper(opts *UpOptions, renewed func()) (*join.Keeper, error) {
	return join.NewKeeper(join.KeeperOptions{
		Dir: opts.Config.Path("pki"), NodeName: opts.Identity.Name, Addresses: []netip.Addr{opts.Config.NodeIP}, Logger: opts.Logger, Renewed: renewed,
	})
}

// upWorker runs a node of a cluster whose servers are elsewhere. It starts without them, too.
func upWorker(ctx context.Context, opts UpOptions, member join.Membership) error {
	c := opts.Config
	if err := makeFolders(c); err != nil {
		return err
	}
	if !c.NodeIP.IsValid() {
		return errors.New("this machine has no address at which the others reach it; give one with --node-ip")
	}
	servers := join.NewServers(member.Servers...)
	keeper, err := newKeeper(&opts, servers.Reconnect)
	if err != nil {
		return err
	}
	if err := keeper.Load(); err != nil {
		return err
	}
	transport := servers.Transport(keeper.ClientTLS())
	cluster, err := remote.New(remote.Options{
		Transport: transport, NodeName: opts.Identity.Name, Agent: "gantry-node/" + opts.Version, Dir: c.Path("known"), Logger: opts.Logger,
	})
	if err != nil {
		return err
	}
	embedded, err := programs.Open(c.Path("bin"))
	if err != nil {
		return err
	}
	node, err := newNode(nodeOptions{
		config: c, identity: opts.Identity, nodeIP: c.NodeIP, serving: keeper.ServerTLS(), programs: embedded,
		cluster: &remoteCluster{cluster: cluster, transport: transport, servers: servers, tls: keeper.ClientTLS}, steps: opts.Steps, logger: opts.Logger,
		version: opts.Version, change: opts.Change, trial: opts.Trial,
	})
	if err != nil {
		return err
	}
	follow := &serverList{servers: servers, member: member, path: c.Path(join.MembershipFile)}
	components := append([]lifecycle.Component{
		{Name: "cluster", Run: func(ctx context.Context) error {
			return runAll(ctx, cluster.Run,
				func(ctx context.Context) error { return keeper.Run(ctx, join.API{Transport: transport}) },
				func(ctx context.Context) error { return follow.run(ctx, cluster.All(), opts) })
		}},
	}, node.components()...)
	ready, onReady := readiness(opts.Ready)
	return runAll(ctx,
		func(ctx context.Context) error {
			return lifecycle.Supervise(ctx, lifecycle.SuperviseOptions{Logger: opts.Logger, Steps: opts.Steps, OnReady: onReady}, components...)
		},
		node.unpack,
		pace,
		func(ctx context.Context) error { return settle(ctx, ready, opts.Logger) })
}

// serverList keeps the list of servers up from the endpoints of default/kubernetes.
type serverList struct {
	servers *join.Servers
	member  join.Membership
	path    string
}

func (l *serverList) run(ctx context.Context, informers informer.Source, opts UpOptions) error {
	return followServers(ctx, informers, func(addrs []string) {
		if !l.servers.Set(addrs) {
			return
		}
		l.member.Servers = l.servers.List()
		if err := l.member.Write(l.path); err != nil {
			opts.Logger.Warn("the list of servers is not written down", "error", err)
		}
	})
}

// noteServers keeps the list of servers, for commands on this machine, up in a file. It only helps: the server runs without it.
func noteServers(cp *ControlPlane, path string, logger *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := waitFor(cp.Serving())(ctx); err != nil {
			return nil // the end came first
		}
		_, informers, err := cp.AsAdmin(partNode)
		if err == nil {
			err = followServers(ctx, informers, func(addrs []string) {
				if err := join.WriteServers(path, addrs); err != nil {
					logger.Warn("the list of servers is not written down", "error", err)
				}
			})
		}
		if err != nil && ctx.Err() == nil {
			logger.Warn("the list of servers is not kept", "error", err)
			<-ctx.Done()
		}
		return nil
	}
}

// followServers calls take with the addresses of the servers that are well, now and when they change.
func followServers(ctx context.Context, informers informer.Source, take func(addrs []string)) error {
	slices := make(chan *discoveryv1.EndpointSlice, 16)
	stop, err := informer.Listen(ctx, informers, informer.Subscription{Object: &discoveryv1.EndpointSlice{}, OnEvent: func(_, current ctrlclient.Object) {
		slice, ok := current.(*discoveryv1.EndpointSlice)
		if !ok || slice.Namespace != metav1.NamespaceDefault || slice.Labels[discoveryv1.LabelServiceName] != "kubernetes" {
			return
		}
		select {
		case slices <- slice:
		case <-ctx.Done():
		}
	}})
	if err != nil {
		return err
	}
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case slice := <-slices:
			take(addressesOf(slice))
		}
	}
}

// addressesOf are where the ready endpoints of a slice are reached.
func addressesOf(slice *discoveryv1.EndpointSlice) []string {
	if len(slice.Ports) == 0 || slice.Ports[0].Port == nil {
		return nil
	}
	port := strconv.Itoa(int(*slice.Ports[0].Port))
	var out []string
	for _, endpoint := range slice.Endpoints {
		if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
			continue
		}
		for _, addr := range endpoint.Addresses {
			out = append(out, net.JoinHostPort(addr, port))
		}
	}
	return out
}
