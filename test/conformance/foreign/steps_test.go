//go:build linux

package foreign

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/v1alpha1"
)

// before is what is said on a cluster without the platform, and to whoever may not install it.
func (tr *tour) before(t *testing.T) {
	file := "--kubeconfig=" + tr.Kubeconfig
	if out := tr.wants(t, 1, "app", "ls", file); !strings.Contains(out, "gantry platform install") {
		t.Error("app ls does not say what to do")
	}
	if out := tr.wants(t, 2, "platform", "install", file); !strings.Contains(out, "gantry platform image") {
		t.Error("install without an image does not say how to get one")
	}
	tr.mustKubectl(t, "", "create", "serviceaccount", "weak")
	token := strings.TrimSpace(tr.mustKubectl(t, "", "create", "token", "weak"))
	weak := filepath.Join(t.TempDir(), "weak")
	if err := os.WriteFile(weak, []byte(tr.mustKubectl(t, "", "config", "view", "--raw", "--flatten")), 0o600); err != nil {
		t.Fatal(err)
	}
	tr.mustKubectl(t, "", "--kubeconfig", weak, "config", "set-credentials", "weak", "--token", token)
	tr.mustKubectl(t, "", "--kubeconfig", weak, "config", "set-context", "weak", "--user", "weak", "--cluster",
		strings.TrimSpace(tr.mustKubectl(t, "", "config", "view", "-o", "jsonpath={.clusters[0].name}")))
	out := tr.wants(t, 8, "platform", "install", "--kubeconfig", weak, "--context", "weak", "--image", platformImage)
	if !strings.Contains(out, "create customresourcedefinitions.apiextensions.k8s.io") || !strings.Contains(out, "nothing was changed") {
		t.Error("install does not say which right is missing")
	}
	if out := tr.mustKubectl(t, "", "get", "namespaces"); strings.Contains(out, "gantry-system") {
		t.Error("an install that was denied has made something")
	}
}

// install installs, twice, and makes what the cluster lacks for databases.
func (tr *tour) install(t *testing.T) {
	plain := tr.wants(t, 0, "platform", "install", "--dry-run", "-o", "yaml", "--image", platformImage)
	if strings.Count(plain, "kind: CustomResourceDefinition") != 2 || !strings.Contains(plain, "kind: Deployment") {
		t.Error("the dry run does not print definitions and Deployment")
	}
	args := []string{"platform", "install", "--kubeconfig", tr.Kubeconfig, "--image", platformImage, "--replicas", "2"}
	tr.wants(t, 0, args...)
	if out := tr.wants(t, 0, "platform", "install", "--kubeconfig", tr.Kubeconfig, "--replicas", "2"); !strings.Contains(out, "nothing had to be changed") {
		t.Error("the second install changed something")
	}
	volumes := ""
	for i := range 2 {
		dir, err := os.MkdirTemp("/tmp", "up-volume-")
		if err != nil {
			t.Fatal(err)
		}
		tr.removed = append(tr.removed, dir)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		volumes += fmt.Sprintf("---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: pv%d}\nspec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], hostPath: {path: %s}}\n", i, dir)
	}
	tr.mustKubectl(t, volumes, "apply", "-f", "-")
	tr.mustKubectl(t, "", "create", "configmap", "platform", "-n", "gantry-system", "--from-literal=addon.postgres.17=docker.io/library/postgres:e2e")
	tr.wants(t, 0, "context", "add", "up", "--kubeconfig", tr.Kubeconfig)
	if out := tr.wants(t, 0, "app", "ls"); strings.Contains(out, "tasks") {
		t.Error("there is an application before the first deploy")
	}
}

// deploy takes the source to a Service, with its database and migrations.
func (tr *tour) deploy(t *testing.T) {
	if out := tr.wants(t, 2, "deploy"); !strings.Contains(out, "--registry") {
		t.Error("deploy without a registry does not say what to do")
	}
	out := tr.wants(t, 0, "deploy", "--registry", registryAddress)
	if !strings.Contains(out, "gantry open") {
		t.Error("deploy does not say how the application is reached")
	}
	tr.url = "http://" + tr.mustKubectl(t, "", "get", "service", "tasks-web", "-o", "jsonpath={.spec.clusterIP}")
	tr.serves(t, "1.0")
	if page, err := tr.fetch("/"); err != nil || !strings.Contains(page, "<h1>Tasks</h1>") {
		t.Errorf("the page is %.300s, %v", page, err)
	}
	one := tr.app(t)
	if c := meta.FindStatusCondition(one.Status.Conditions, "Routed"); c == nil || c.Reason != "NoGateway" {
		t.Errorf("the conditions are %+v, want Routed false", one.Status.Conditions)
	}
	if out := tr.wants(t, 0, "ps"); strings.Count(out, "web") < 2 || !strings.Contains(out, "worker") {
		t.Error("ps does not show two of web and a worker")
	}
	tr.wants(t, 0, "status", "tasks")
	tr.wants(t, 0, "status")
}

// crud uses the application, and leaves one task there.
func (tr *tour) crud(t *testing.T) {
	l := &load{client: tr.client(), url: tr.url}
	l.ask("POST", "/api/tasks", `{"title":"`+tourTask+`"}`, http.StatusCreated, func(string) bool { return true })
	l.read()
	l.write()
	l.check(t, "CRUD")
}

func (tr *tour) worker(t *testing.T) {
	tr.eventually(t, "the worker wrote a digest", func() error {
		text, err := tr.fetch("/api/digests")
		if err == nil && !strings.Contains(text, `"created":`) {
			err = fmt.Errorf("there is %s", text)
		}
		return err
	})
	if out := tr.wants(t, 0, "logs"); !strings.Contains(out, `"listening"`) || !strings.Contains(out, `"worked"`) {
		t.Error("logs do not show web and worker")
	}
	tr.wants(t, 0, "exec", "--", "/app/tasks", "migrate") // there is nothing left to migrate
	tr.wants(t, 0, "run", "--", "/app/tasks", "migrate")
	tr.forward(t)
}

// forward leads a port of the machine to the application.
func (tr *tour) forward(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+tr.ns, filepath.Join(tr.bin, "gantry"), "open", "--forward")
	cmd.Dir, cmd.Env, cmd.Stderr = tr.folder, tr.env, t.Output()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("open --forward prints no address: %v", err)
	}
	client := tr.client()
	response, err := client.Get(strings.Replace(strings.TrimSpace(url), "localhost", "127.0.0.1", 1) + "/version")
	if err != nil {
		t.Errorf("through %q: %v", url, err)
	} else {
		text, err := io.ReadAll(response.Body)
		if _ = response.Body.Close(); err != nil || string(text) != "1.0\n" {
			t.Errorf("through %q: %q, %v", url, text, err)
		}
	}
	cancel()
	if err := cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("open --forward ended with %v", err)
	}
}

func (tr *tour) unchanged(t *testing.T) {
	tr.wants(t, 0, "deploy", "--registry", registryAddress)
	if latest := tr.app(t).Status.Latest; latest != 1 {
		t.Errorf("the same source made release v%d", latest)
	}
}

// next replaces the release under load. The canary of gantry.yaml cannot be: that is said, and it is rolled out at once.
func (tr *tour) next(t *testing.T) {
	tr.load = startLoad(tr.client(), tr.url)
	tr.more(t, 50)
	tr.edit(t, "main.go", versionLine("1.0"), versionLine("2.0"))
	tr.edit(t, "gantry.yaml", "name: tasks\n", "name: tasks\nbuild: {registry: \""+registryAddress+"\"}\n")
	tr.wants(t, 0, "deploy")
	tr.serves(t, "2.0")
	if out := tr.wants(t, 0, "release", "show"); !strings.Contains(out, "no Gateway API") {
		t.Error("the release does not say that it was no canary")
	}
	tr.more(t, 100)
	tr.load.check(t, "next release")
}

func (tr *tour) crashing(t *testing.T) {
	tr.edit(t, "main.go", versionLine("2.0"), versionLine("2.1-crash"), "case \"serve\":\n", "case \"serve\":\n\t\tpanic(\"no flux capacitor\")\n")
	if out := tr.wants(t, 5, "deploy"); !strings.Contains(out, "no flux capacitor") {
		t.Error("deploy does not show the last words")
	}
	tr.serves(t, "2.0")
	tr.more(t, 50)
	tr.load.check(t, "crashing release")
	tr.edit(t, "main.go", "panic(\"no flux capacitor\")\n", "\n")
}

func (tr *tour) failedBuild(t *testing.T) {
	tr.edit(t, "main.go", versionLine("2.1-crash"), "const version = 3")
	if out := tr.wants(t, 3, "deploy"); !strings.Contains(out, "serve.go:") {
		t.Error("the build's failure does not name the file")
	}
	tr.edit(t, "main.go", "const version = 3", versionLine("2.0"))
}

func (tr *tour) rollback(t *testing.T) {
	tr.wants(t, 0, "rollback", "v1")
	tr.serves(t, "1.0")
	tr.more(t, 50)
	tr.load.check(t, "rollback")
}

// settings changes what acts without a deploy.
func (tr *tour) settings(t *testing.T) {
	tr.wants(t, 0, "scale", "web=3")
	tr.eventually(t, "three of web run", func() error {
		if web := tr.app(t).Status.Processes["web"]; web.Ready != 3 {
			return fmt.Errorf("%+v", web)
		}
		return nil
	})
	tr.wants(t, 0, "env", "set", "COLOR=red")
	if out, code := tr.gantry(t, "hunter2\n", "secret", "set", "TOUR_KEY"); code != 0 || strings.Contains(out, "hunter2") {
		t.Error("secret set went wrong")
	}
	if out := tr.wants(t, 0, "secret", "ls"); !strings.Contains(out, "TOUR_KEY") {
		t.Error("the secret is not listed")
	}
	tr.eventually(t, "the pods have the environment", func() error {
		out, err := tr.kubectl(t.Context(), "", "get", "deployment", "tasks-web", "-o", "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"COLOR\")].value}")
		if err == nil && out != "red" {
			err = fmt.Errorf("COLOR is %q", out)
		}
		return err
	})
	tr.mustKubectl(t, "", "rollout", "status", "deployment/tasks-web", "--timeout=120s")
	tr.more(t, 50)
	tr.load.check(t, "settings")
}

// podRemoved deletes a pod in order. (One that is killed costs requests here: no gateway tries them again.)
func (tr *tour) podRemoved(t *testing.T) {
	name := tr.mustKubectl(t, "", "get", "pods", "-l", v1alpha1.LabelProcess+"=web", "-o", "jsonpath={.items[0].metadata.name}")
	tr.mustKubectl(t, "", "delete", "pod", name)
	tr.more(t, 200)
	tr.mustKubectl(t, "", "rollout", "status", "deployment/tasks-web", "--timeout=120s")
	tr.load.check(t, "pod removed in order")
}

// controllerRemoved removes the controller that leads: the other one goes on.
func (tr *tour) controllerRemoved(t *testing.T) {
	leader := tr.mustKubectl(t, "", "get", "lease", "-n", "gantry-system", "gantry-platform", "-o", "jsonpath={.spec.holderIdentity}")
	tr.mustKubectl(t, "", "delete", "pod", "-n", "gantry-system", leader, "--grace-period=0", "--force")
	tr.edit(t, "main.go", versionLine("2.0"), versionLine("3.0"))
	tr.wants(t, 0, "deploy")
	tr.serves(t, "3.0")
	now := tr.mustKubectl(t, "", "get", "lease", "-n", "gantry-system", "gantry-platform", "-o", "jsonpath={.spec.holderIdentity}")
	if now == leader || now == "" {
		t.Errorf("%q leads, after %q was removed", now, leader)
	}
	tr.load.check(t, "controller removed")
	out, err := tr.run(t.Context(), "", "sh", "-c", "for p in $(pgrep -f 'gantry platform run'); do grep -E 'VmHWM|VmRSS|RssAnon' /proc/$p/status | tr '\\n' ' '; echo; done")
	t.Logf("memory of the controllers: %v\n%s", err, out)
}

// sleep is what nobody could end here: it is said, and the application stays up.
func (tr *tour) sleep(t *testing.T) {
	tr.edit(t, "gantry.yaml", "    scale: 2\n", "    scale: {min: 0, max: 2, idle: 3s}\n")
	tr.wants(t, 0, "deploy")
	tr.eventually(t, "it is said that nobody counts", func() error {
		if c := meta.FindStatusCondition(tr.app(t).Status.Conditions, "Measured"); c == nil || c.Reason != "NoMetrics" {
			return fmt.Errorf("the conditions are %+v", tr.app(t).Status.Conditions)
		}
		return nil
	})
	tr.serves(t, "3.0")
	tr.edit(t, "gantry.yaml", "    scale: {min: 0, max: 2, idle: 3s}\n", "    scale: 2\n")
	tr.wants(t, 0, "deploy")
	tr.load.check(t, "sleep is refused")
	tr.load.stop()
	tr.load = nil
}

func (tr *tour) removeAndUndo(t *testing.T) {
	tr.wants(t, 0, "app", "rm", "tasks", "--yes")
	tr.eventually(t, "nothing runs", func() error {
		if out, err := tr.kubectl(t.Context(), "", "get", "pods", "-l", "gantry.dev/app=tasks", "-o", "name"); err != nil || strings.Contains(out, "tasks-web") {
			return fmt.Errorf("%s, %w", out, err)
		}
		return nil
	})
	tr.wants(t, 0, "app", "undo", "tasks")
	tr.serves(t, "3.0")
	if text, err := tr.fetch("/api/tasks"); err != nil || !strings.Contains(text, tourTask) {
		t.Errorf("the tasks are %s, %v", text, err)
	}
}

// eject writes the plain objects, which the API takes, and which hold no secret.
func (tr *tour) eject(t *testing.T) {
	tr.ejected = filepath.Join(t.TempDir(), "tasks.yaml")
	tr.wants(t, 0, "eject", "tasks", "-o", tr.ejected)
	text, err := os.ReadFile(tr.ejected)
	if err != nil {
		t.Fatal(err)
	}
	var credentials corev1.Secret
	if err := json.Unmarshal([]byte(tr.mustKubectl(t, "", "get", "secret", "tasks-db", "-o", "json")), &credentials); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"DB_PASSWORD", "DATABASE_URL"} { // what else is there is no secret, such as the port
		if value := credentials.Data[key]; len(value) == 0 || strings.Contains(string(text), string(value)) {
			t.Errorf("what was written holds %s of tasks-db", key)
		}
	}
	tr.ejectedText = string(text)
	tr.mustKubectl(t, tr.ejectedText, "apply", "--dry-run=server", "-f", "-")
	credentials.OwnerReferences, credentials.ResourceVersion, credentials.UID, credentials.ManagedFields = nil, "", "", nil
	credentials.Kind, credentials.APIVersion = "Secret", "v1"
	encoded, err := yaml.Marshal(credentials)
	if err != nil {
		t.Fatal(err)
	}
	tr.ejectedSecret = string(encoded)
}

// uninstall takes the platform away: the application goes on. What was ejected runs in its place when it is removed.
func (tr *tour) uninstall(t *testing.T) {
	tr.wants(t, 0, "platform", "uninstall", "--yes")
	tr.serves(t, "3.0")
	tr.mustKubectl(t, "", "delete", "apps", "tasks", "--cascade=foreground", "--timeout=120s")
	tr.eventually(t, "nothing is left", func() error {
		out, err := tr.kubectl(t.Context(), "", "get", "all,secrets", "-l", "gantry.dev/app=tasks", "-o", "name")
		if err != nil || strings.Contains(strings.ReplaceAll(out, "secret/tasks-secrets", ""), "tasks") {
			return fmt.Errorf("%s, %w", out, err)
		}
		return nil
	})
	tr.mustKubectl(t, tr.ejectedSecret, "apply", "-f", "-")
	tr.mustKubectl(t, tr.ejectedText, "apply", "-f", "-")
	tr.mustKubectl(t, "", "wait", "--for=condition=Available", "deployment/tasks-web", "--timeout=150s")
	tr.url = "http://" + tr.mustKubectl(t, "", "get", "service", "tasks-web", "-o", "jsonpath={.spec.clusterIP}")
	tr.serves(t, "3.0")
	if text, err := tr.fetch("/api/tasks"); err != nil || !strings.Contains(text, tourTask) {
		t.Errorf("the tasks are %s, %v", text, err)
	}
	tr.wants(t, 0, "platform", "uninstall", "--apps", "--data", "--yes")
	tr.eventually(t, "nothing of the platform is left", func() error {
		out, err := tr.kubectl(t.Context(), "", "get", "crds,clusterroles,clusterrolebindings,namespaces", "-o", "name")
		if err == nil && strings.Contains(out, "gantry") {
			err = errors.New(out)
		}
		return err
	})
}
