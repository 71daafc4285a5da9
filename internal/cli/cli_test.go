package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gantry":        func() { os.Exit(runFake(fakeBackend())) },
		"gantry-client": func() { os.Exit(runFake(Backend{})) },
	})
}

func runFake(backend Backend) int {
	return Main(context.Background(), Env{
		Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		IsTerminal: os.Getenv("FAKE_TERMINAL") != "", Version: "v1.2.3", Commit: "abc1234",
	}, backend)
}

// TestScripts runs the command line as a user would; anyone can add a file to testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("GANTRY_DATA_DIR", env.Getenv("WORK")+"/data")
			env.Setenv("HOME", env.Getenv("WORK")+"/home")
			env.Defer(func() { stopNode(env.Getenv("WORK") + "/data") })
			return nil
		},
		Condition: func(condition string) (bool, error) { return condition == "root" && os.Geteuid() == 0, nil },
	})
}

func TestStatusRows(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	two := int32(2)
	nodes := corev1.NodeList{Items: []corev1.Node{{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", CreationTimestamp: metav1.NewTime(now.Add(-5 * time.Minute))},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "node-1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.10"}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3"},
		},
	}}}
	pods := corev1.PodList{Items: []corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, {Status: corev1.PodStatus{Phase: corev1.PodPending}}}}
	deployments := appsv1.DeploymentList{Items: []appsv1.Deployment{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"},
		Spec:       appsv1.DeploymentSpec{Replicas: &two}, Status: appsv1.DeploymentStatus{ReadyReplicas: 1},
	}}}
	var got []string
	for _, row := range statusRows(summarize("https://127.0.0.1:6443", nodes, pods, deployments, now)) {
		got = append(got, strings.Join(row, " | "))
	}
	want := []string{
		"cluster | https://127.0.0.1:6443",
		"node | node-1 | ready | 192.0.2.10 | v1.36.3 | 5m",
		"pods | 1 running, 1 pending",
		"deployment | default/hello | 1 of 2 ready",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("rows are\n%s", strings.Join(got, "\n"))
	}
}
