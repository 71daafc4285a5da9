package server

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/doctor"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/podnet"
)

// examine looks for what would keep a cluster on this machine from working.
func examine(ctx context.Context, c config.Config) ([]cli.Finding, error) {
	if err := lifecycle.CheckRoot("gantry doctor"); err != nil {
		return nil, err
	}
	member, isMember, err := join.ReadMembership(c.Path(join.MembershipFile))
	if err != nil {
		return nil, err
	}
	features, err := networkFeatures()
	if err != nil {
		return nil, err
	}
	opts := doctor.Options{DataDir: c.DataDir, Features: features, Ports: portsOf(c, isMember && member.Role == join.Worker)}
	for _, server := range member.Servers {
		if addr, err := netip.ParseAddrPort(server); err == nil && addr.Addr() == c.NodeIP {
			continue // this machine's own clock
		}
		opts.Servers = append(opts.Servers, server)
	}
	var out []cli.Finding
	for _, check := range doctor.Judge(doctor.Read(ctx, opts)) {
		finding := cli.Finding{Check: check.Name, Level: string(check.Level), Says: check.Says, Cure: check.Cure}
		if check.Module != "" {
			finding.Fix = loadModule(check.Module)
		}
		out = append(out, finding)
	}
	firewall, err := firewallFindings(ctx, features)
	return append(out, firewall...), err
}

// networkFeatures tries what the network needs of the kernel.
func networkFeatures() ([]doctor.Feature, error) {
	tried, err := podnet.TryKernel()
	if err != nil {
		return nil, err
	}
	out := make([]doctor.Feature, 0, len(tried))
	for _, f := range tried {
		feature := doctor.Feature{Name: f.Name, For: "the network of pods", Module: f.Module, Err: f.Err}
		if f.Module == "vxlan" {
			feature.For, feature.Optional = "machines that do not share a network", true
		}
		out = append(out, feature)
	}
	return out, nil
}

// portsOf lists what a node listens on; a worker has no API.
func portsOf(c config.Config, worker bool) []doctor.Port {
	node := c.NodeIP
	if !node.IsValid() {
		node = netip.IPv4Unspecified()
	}
	var ports []doctor.Port
	if !worker {
		ports = append(ports, doctor.Port{At: c.Listen, For: "the API", Flag: "--" + config.KeyListen})
	}
	ports = append(ports, doctor.Port{At: netip.AddrPortFrom(node, c.AgentPort), For: "the node's agent", Flag: "--" + config.KeyAgentPort})
	if !c.Gateway.Off {
		all := netip.IPv4Unspecified()
		ports = append(ports,
			doctor.Port{At: netip.AddrPortFrom(all, c.Gateway.HTTPPort), For: "the gateway's HTTP", Flag: "--" + config.KeyGatewayHTTPPort},
			doctor.Port{At: netip.AddrPortFrom(all, c.Gateway.HTTPSPort), For: "the gateway's HTTPS", Flag: "--" + config.KeyGatewayHTTPSPort})
	}
	return ports
}

// firewallFindings are other firewalls' rules that would drop the pods' traffic. Without nftables there are none to be read.
func firewallFindings(ctx context.Context, features []doctor.Feature) ([]cli.Finding, error) {
	if slices.ContainsFunc(features, func(f doctor.Feature) bool { return f.Module == "nf_tables" && f.Err != nil }) {
		return nil, nil
	}
	found, err := otherFirewalls(ctx)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return []cli.Finding{{Check: "firewalls", Level: cli.LevelOK, Says: "no rule of others drops the pods' traffic"}}, nil
	}
	var out []cli.Finding
	for _, f := range found {
		out = append(out, cli.Finding{
			Check: "firewalls", Level: cli.LevelProblem, Says: f.What, Cure: commands(f.Cure),
			Fix: func(ctx context.Context) error { return podnet.ApplyCure(ctx, []podnet.Finding{f}) },
		})
	}
	return out, nil
}

// otherFirewalls finds the rules of others that drop the pods' traffic.
func otherFirewalls(ctx context.Context) ([]podnet.Finding, error) {
	through, err := tunnels()
	if err != nil {
		return nil, err
	}
	return podnet.CheckFirewall(ctx, "gantry0", through...)
}

// loadModule is the cure for a feature that is a module of the kernel.
func loadModule(module string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if text, err := exec.CommandContext(ctx, "modprobe", module).CombinedOutput(); err != nil {
			return fmt.Errorf("running modprobe %s: %w: %s", module, err, bytes.TrimSpace(text))
		}
		return nil
	}
}
