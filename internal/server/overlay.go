package server

import (
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/network/overlay"
	"gantry.dev/gantry/internal/network/podnet"
)

// overlayNodes lets the network between machines read all Nodes as the proxy of services does, and write on its own as the
// node.
type overlayNodes struct {
	ctrlclient.Reader
	ctrlclient.Writer
}

// newOverlay makes the network between this machine and the others. reader and informers see all Nodes, writer is the node.
func (n *node) newOverlay(reader ctrlclient.Reader, informers overlay.Informers, writer ctrlclient.Writer) (*overlay.Overlay, error) {
	c := n.opts.config
	return overlay.New(overlayNodes{reader, writer}, informers, overlay.Options{
		NodeName: n.opts.identity.Name, ClusterCIDR: c.PodCIDR, TunnelOnly: c.NetworkMode == config.NetworkVXLAN,
		OnTunnel: n.warnOfFirewalls, Logger: n.opts.logger,
	})
}

// tunnels are those of this machine that other firewalls must let through.
func tunnels() ([]podnet.Tunnel, error) {
	there, err := overlay.HasTunnel()
	if err != nil || !there {
		return nil, err
	}
	return []podnet.Tunnel{{Link: overlay.TunnelLink, Port: overlay.TunnelPort}}, nil
}
