package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/config"
)

// fakeBackend plays a machine: images are lines of a file, a node is ready at once.
func fakeBackend() Backend {
	return Backend{
		Versions: func() []Version { return []Version{{"kubernetes", "v1.36.3"}, {"etcd", "3.7.3"}} },
		Up:       fakeUp,
		Down: func(_ context.Context, run DownRequest) error {
			run.Steps.Begin("pods", "stopped")(nil)
			return nil
		},
		Doctor: fakeDoctor,
		Images: &Images{
			Load: fakeLoad,
			List: func(context.Context, config.Config) ([]Image, error) {
				return []Image{{Name: "docker.io/library/hello:1", Digest: "sha256:0123456789abcdef", SizeBytes: 7_340_032}}, nil
			},
			Remove: func(_ context.Context, _ config.Config, name string) error {
				return fmt.Errorf("there is no image %s on this node; see \"gantry image ls\"", name)
			},
			Build: func(_ context.Context, run BuildRequest) error {
				if strings.Contains(run.Path, "broken") {
					return errors.New("main.go:3: syntax error")
				}
				_, err := fmt.Fprintln(run.Out, run.Name)
				return err
			},
		},
		Registry: fakeRegistry(),
		Plan:     fakePlan,
		WhyPod: func(_ context.Context, cluster *rest.Config, project, name string) (Answer, error) {
			if name == "none" {
				return Answer{}, Unreachable(errors.New("nobody answers"))
			}
			return Answer{Document: map[string]string{"pod": name}, Text: fmt.Sprintf("%s/%s at %s\n", project, name, cluster.Host)}, nil
		},
	}
}

func fakePlan(_ context.Context, run PlanRequest) (Answer, error) {
	documents, err := io.ReadAll(run.Documents)
	if err != nil {
		return Answer{}, err
	}
	if strings.Contains(string(documents), "broken") {
		return Answer{}, WrongInput(errors.New("document 1 is broken"))
	}
	return Answer{
		Document: map[string]string{"documents": string(documents)}, Warnings: []string{"secrets were not read"},
		Text: fmt.Sprintf("%s in %s within %s\n", documents, run.Project, run.Timeout),
	}, nil
}

func fakeUp(ctx context.Context, run UpRequest) error {
	run.Steps.Begin("store", "ready")(nil)
	if run.Config.ClusterDomain == "broken.local" {
		run.Logger.Error("the store is upset")
		return errors.New("store: upset")
	}
	if err := os.WriteFile(run.Config.Kubeconfig, []byte(fakeKubeconfig), 0o600); err != nil {
		return err
	}
	run.Ready()
	<-ctx.Done()
	return nil
}

func fakeDoctor(context.Context, config.Config) ([]Finding, error) {
	kernel := Finding{Check: "kernel", Level: LevelOK, Says: "6.1.0"}
	clock := Finding{Check: "clock", Level: LevelWarning, Says: "nothing keeps it right", Cure: "install chrony"}
	mark := os.Getenv("WORK") + "/cured"
	if _, err := os.Stat(mark); err == nil {
		return []Finding{kernel, clock}, nil
	}
	return []Finding{kernel, clock, {
		Check: "firewalls", Level: LevelProblem, Says: "the rule \"drop\" of table filter keeps pods from the network",
		Cure: "nft add rule ip filter FORWARD accept",
		Fix:  func(context.Context) error { return os.WriteFile(mark, nil, 0o600) },
	}}, nil
}

func fakeLoad(_ context.Context, _ config.Config, archive io.Reader) ([]string, error) {
	var names []string
	scanner := bufio.NewScanner(archive)
	for scanner.Scan() {
		names = append(names, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, errors.New("the archive holds no image")
	}
	return names, nil
}

const fakeKubeconfig = `apiVersion: v1
kind: Config
current-context: gantry
clusters: [{name: gantry, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: gantry-admin, user: {token: secret}}]
contexts: [{name: gantry, context: {cluster: gantry, user: gantry-admin}}]
`

func fakeRegistry() *Registry {
	pushed := func(target string) (Pushed, error) {
		return Pushed{Name: registryHost + "/" + target, Reference: registryHost + "/shop/web@sha256:0123"}, nil
	}
	return &Registry{
		PushFile:  func(_ context.Context, run PushRequest) (Pushed, error) { return pushed("default/" + run.Source) },
		PushLocal: func(_ context.Context, _ config.Config, run PushRequest) (Pushed, error) { return pushed(run.Target) },
		List: func(context.Context, *rest.Config) ([]Image, error) {
			return []Image{{Name: registryHost + "/shop/web:v1", Digest: "sha256:0123456789abcdef", SizeBytes: 1 << 20, Where: "registry"}}, nil
		},
		Remove: func(context.Context, *rest.Config, string) error { return nil },
		Prune: func(context.Context, config.Config) (Pruned, error) {
			return Pruned{Manifests: 1, Blobs: 2, Bytes: 3 << 20}, nil
		},
	}
}
