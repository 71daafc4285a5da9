package deploy

import (
	"fmt"
	"net/http"
	"net/url"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// Field managers of what people ask for.
const (
	ManagerDeploy = "gantry-deploy"
	ManagerEnv    = "gantry-env"
	ManagerScale  = "gantry-scale"
)

// Cluster is how a cluster is reached.
type Cluster struct {
	Client client.WithWatch
	HTTP   *http.Client // for what is no object: logs and the registry
	Config *rest.Config
	Host   string // "https://203.0.113.7:6443"
}

// Connect makes clients. It asks nothing: the kinds that are used are known.
func Connect(config *rest.Config) (*Cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // whoever deploys asks little, and the server has limits of its own
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, networkingv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("prepare the types of the API: %w", err)
		}
	}
	c, err := client.NewWithWatch(config, client.Options{HTTPClient: web, Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	return &Cluster{Client: c, HTTP: web, Config: config, Host: config.Host}, nil
}

// mapper knows the kinds that are used here, so that no question to the server is needed.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	add := func(gv schema.GroupVersion, scope meta.RESTScope, kinds ...string) {
		for _, kind := range kinds {
			m.Add(gv.WithKind(kind), scope)
		}
	}
	add(v1alpha1.GroupVersion(), meta.RESTScopeNamespace, "App", "Release", "Build")
	add(corev1.SchemeGroupVersion, meta.RESTScopeNamespace, "Pod", "Secret", "Service", "Event", "PersistentVolumeClaim", "ConfigMap")
	add(corev1.SchemeGroupVersion, meta.RESTScopeRoot, "Node", "Namespace")
	add(appsv1.SchemeGroupVersion, meta.RESTScopeNamespace, "Deployment", "ReplicaSet")
	add(batchv1.SchemeGroupVersion, meta.RESTScopeNamespace, "Job", "CronJob")
	add(networkingv1.SchemeGroupVersion, meta.RESTScopeNamespace, "NetworkPolicy")
	return m
}

// StreamURL is where a program in a pod is reached: kind is exec or attach.
func (c *Cluster) StreamURL(pod *corev1.Pod, kind string, options corev1.PodExecOptions) (*url.URL, error) {
	query := url.Values{"container": {options.Container}}
	for name, on := range map[string]bool{"stdin": options.Stdin, "stdout": options.Stdout, "stderr": options.Stderr, "tty": options.TTY} {
		if on {
			query.Set(name, "true")
		}
	}
	for _, word := range options.Command {
		query.Add("command", word)
	}
	address, err := c.url(fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/%s?%s", pod.Namespace, pod.Name, kind, query.Encode()))
	if err != nil {
		return nil, err
	}
	return url.Parse(address)
}
