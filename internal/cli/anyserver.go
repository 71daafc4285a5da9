package cli

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gantry.dev/gantry/internal/join"
)

// serversExtension is the extension of a cluster with several servers, in the list of contexts.
const serversExtension = "gantry.dev/servers"

// anyServer makes requests go to another server where the cluster's own does not answer.
func anyServer(config *rest.Config, servers []string) {
	if len(servers) == 0 || config.Dial != nil || config.Insecure {
		return
	}
	config.Dial = join.NewServers(servers...).DialTCP
	if config.ServerName == "" {
		config.ServerName = join.ServerName // it is in the certificate of each
	}
}

// serversOf is the list of servers that a context keeps.
func serversOf(cluster *clientcmdapi.Cluster) []string {
	if cluster == nil {
		return nil
	}
	raw, ok := cluster.Extensions[serversExtension].(*runtime.Unknown)
	if !ok {
		return nil
	}
	var servers []string
	if json.Unmarshal(raw.Raw, &servers) != nil {
		return nil
	}
	return servers
}

// keepServers notes the servers in a context's cluster.
func keepServers(cluster *clientcmdapi.Cluster, servers []string) {
	raw, err := json.Marshal(servers)
	if err != nil || len(servers) < 2 {
		return
	}
	if cluster.Extensions == nil {
		cluster.Extensions = map[string]runtime.Object{}
	}
	cluster.Extensions[serversExtension] = &runtime.Unknown{Raw: raw, ContentType: runtime.ContentTypeJSON}
}

// findLimit is how long a new context is asked for its servers.
const findLimit = 3 * time.Second

// findServers notes the servers of a new context, if the one that it names is one of several. Who may not read where they are does
// without.
func (a *app) findServers(ctx context.Context, contexts *clientcmdapi.Config, name string) {
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	config, err := clientcmd.NewNonInteractiveClientConfig(*contexts, name, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return
	}
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return
	}
	var slice discoveryv1.EndpointSlice
	raw := &rawClient{web, config.Host}
	if raw.ask(ctx, http.MethodGet, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", nil, &slice) != nil {
		return
	}
	own, err := url.Parse(config.Host)
	if err != nil || len(slice.Ports) == 0 || slice.Ports[0].Port == nil {
		return
	}
	var servers []string
	for _, endpoint := range slice.Endpoints {
		for _, addr := range endpoint.Addresses {
			servers = append(servers, net.JoinHostPort(addr, strconv.Itoa(int(*slice.Ports[0].Port))))
		}
	}
	if slices.Contains(servers, own.Host) { // else it is something before the servers, which knows them better
		keepServers(contexts.Clusters[name], servers)
	}
}
