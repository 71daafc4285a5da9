package render

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestCommand(t *testing.T) {
	for line, want := range map[string][]string{
		"":                        nil,
		"./shop serve":            {"./shop", "serve"},
		`./shop --name "a b" 'c'`: {"./shop", "--name", "a b", "c"},
		`echo a\ b`:               {"echo", "a b"},
		"./shop -p $PORT":         {"/bin/sh", "-c", "exec ./shop -p $PORT"},
		"./a && ./b":              {"/bin/sh", "-c", "./a && ./b"},
		"A=1 ./shop":              {"/bin/sh", "-c", "A=1 ./shop"},
		"cd app":                  {"/bin/sh", "-c", "cd app"},
		"echo $(date)":            {"/bin/sh", "-c", "echo $$(date)"},
		"./shop 'a$(B)'":          {"./shop", "a$$(B)"},
		"./shop 'unfinished":      {"/bin/sh", "-c", "exec ./shop 'unfinished"},
	} {
		if got := Command(line); !slices.Equal(got, want) {
			t.Errorf("Command(%q) = %q, want %q", line, got, want)
		}
	}
}

// everything is an application that uses all there is.
func everything() *v1alpha1.App {
	cpu, memory, size := resource.MustParse("0.5"), resource.MustParse("256Mi"), resource.MustParse("5Gi")
	return &v1alpha1.App{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", UID: "1b4d"},
		Spec: v1alpha1.AppSpec{
			Image: "registry.gantry.internal/default/shop@sha256:1", Release: &v1alpha1.ReleaseCommand{Command: "./shop migrate"},
			Env: map[string]string{"LOG_LEVEL": "info", "PRICE": "$$5"}, Config: map[string]string{"LOG_LEVEL": "debug", "COLOR": "red"},
			Secrets: []string{"STRIPE_KEY"}, Addons: map[string]v1alpha1.Addon{"db": {Type: "postgres"}},
			Domains: []v1alpha1.Domain{{Name: "shop.example.com"}, {Name: "www.shop.example.com", Redirect: "shop.example.com"}},
			Processes: map[string]v1alpha1.Process{
				"web": {
					Command: "./shop serve", Port: 8080, Health: &v1alpha1.Health{Path: "/healthz", Grace: &metav1.Duration{Duration: 30e9}},
					Scale: &v1alpha1.Scale{Min: new(int32(0)), Max: new(int32(5)), Concurrency: new(int32(80)), CPU: new(int32(70))}, CPU: &cpu, Memory: &memory,
					Stop: &v1alpha1.Stop{Signal: "int", Timeout: &metav1.Duration{Duration: 10e9}},
				},
				"worker": {Command: "./shop work", Scale: &v1alpha1.Scale{Min: new(int32(2))}},
				"files":  {Volumes: map[string]v1alpha1.Volume{"/data": {Name: "uploads", Size: &size}}},
				"report": {Command: "./shop report", Schedule: "0 3 * * *", Timezone: "Europe/Berlin"},
			},
			Placement: &v1alpha1.Placement{Labels: map[string]string{"disk": "ssd"}, Spread: "node"},
			Restarts:  2,
		},
	}
}

func TestGolden(t *testing.T) {
	app := everything()
	one, two := &Version{Number: 1, Content: &app.Spec}, &Version{Number: 2, Content: &app.Spec}
	all := map[string]*Version{"web": one, "worker": one, "files": one, "report": one}
	hosts := []string{"shop.example.com", "shop.localhost"}
	small := &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}, Spec: v1alpha1.AppSpec{
		Image: "hello:1", Release: &v1alpha1.ReleaseCommand{Command: "./hello migrate"},
	}}
	for name, objects := range map[string][]any{
		"everything": list(Input{App: app, Processes: all, Routing: RouteGateway, Hosts: hosts, Redirects: app.Spec.Domains[1:], Hold: "60s", Metrics: true, Listener: "https"}),
		"canary":     list(Input{App: app, Processes: map[string]*Version{"web": one}, Replicas: map[string]int32{"web": 3}, Routing: RouteGateway, Hosts: hosts, Canary: &Canary{two, 25, 1}}),
		"stopped":    list(Input{App: app, Processes: all, Stopped: true, Routing: RouteIngress, Hosts: hosts, Hold: "60s"}),
		"ejected":    eject(small),
		"jobs":       {ReleaseJob(app, one)},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			for _, object := range objects {
				text, err := yaml.Marshal(object)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString("---\n")
				got.Write(text)
			}
			path := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the objects differ from %s; if that is meant, run the test with -update. They are:\n%s", path, got.String())
			}
		})
	}
}

func list(in Input) (out []any) {
	for _, object := range Objects(in) {
		out = append(out, object)
	}
	return out
}

func eject(app *v1alpha1.App) (out []any) {
	version := &Version{Number: 1, Content: &app.Spec}
	in := Input{App: app, Routing: RouteIngress, Hosts: []string{"hello.example.com", "hello.localhost"}, IngressClass: "nginx", Issuer: "letsencrypt"}
	for _, object := range Eject(in, version) {
		out = append(out, object)
	}
	return out
}
