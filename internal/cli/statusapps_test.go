package cli

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

func TestStatusOfApp(t *testing.T) {
	of := func(change func(*v1alpha1.App)) *v1alpha1.App {
		one := &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"}}
		one.Status = v1alpha1.AppStatus{Phase: v1alpha1.AppRunning, Release: 3, Latest: 3, URLs: []string{"https://shop.example.com"},
			Processes: map[string]v1alpha1.ProcessStatus{"web": {Desired: 2, Ready: 2}, "worker": {Desired: 1, Ready: 1}}}
		change(one)
		return one
	}
	for name, tc := range map[string]struct {
		app           *v1alpha1.App
		ready, wanted int32
		trouble       string
	}{
		"well":           {of(func(*v1alpha1.App) {}), 3, 3, ""},
		"a process less": {of(func(a *v1alpha1.App) { a.Status.Processes["worker"] = v1alpha1.ProcessStatus{Desired: 2} }), 2, 4, "ready: worker 0 of 2"},
		"said":           {of(func(a *v1alpha1.App) { a.Status.Phase, a.Status.Message = v1alpha1.AppUnhealthy, "v4 failed" }), 3, 3, "v4 failed"},
		"asleep":         {of(func(a *v1alpha1.App) { a.Status.Phase, a.Status.Message = v1alpha1.AppSleeping, "a request wakes it" }), 3, 3, ""},
		"a domain": {of(func(a *v1alpha1.App) {
			a.Status.Domains = []v1alpha1.DomainStatus{{Name: "a.example", Message: "points to 192.0.2.1"}}
		}), 3, 3, "a.example: points to 192.0.2.1"},
		"an addon": {of(func(a *v1alpha1.App) { a.Spec.Addons = map[string]v1alpha1.Addon{"db": {Type: "postgres"}} }), 3, 3, "addon db: it is being made"},
		"removed":  {of(func(a *v1alpha1.App) { a.Annotations = map[string]string{v1alpha1.AnnotationRemoved: "x"} }), 3, 3, "removed; back by: gantry app undo shop"},
	} {
		t.Run(name, func(t *testing.T) {
			row := statusOfApp(tc.app)
			if row.Ready != tc.ready || row.Desired != tc.wanted || row.Trouble != tc.trouble {
				t.Errorf("row %+v; want %d of %d, %q", row, tc.ready, tc.wanted, tc.trouble)
			}
		})
	}
}

func joined(rows [][]string) string {
	var out []string
	for _, row := range rows {
		out = append(out, strings.Join(row, " | "))
	}
	return strings.Join(out, "\n")
}

func TestCostRows(t *testing.T) {
	one := nodeCost{Node: "a", Gantry: nodeUsage{140_000_000, 0.012}, Apps: nodeUsage{2_300_000_000, 0.5}, Pods: 7,
		Programs: []programCost{{"gantry", 1, nodeUsage{110_000_000, 0}}, {"gantry-edge", 1, nodeUsage{12_000_000, 0}}, {"gantry-shim", 7, nodeUsage{18_000_000, 0}}}}
	one.Disk.CapacityBytes, one.Disk.AvailableBytes = 100e9, 8e9
	const want = "gantry | 140 MB, 1.2 % of a CPU | gantry 110 MB, edge 12 MB, 7 shim 18 MB\n" +
		"apps | 2.3 GB, 50.0 % of a CPU | in 7 pods\n" +
		"disk | 8000 MB free of 100 GB: deploys are refused below 10 %; free some: gantry image prune"
	if got := joined(costRows([]nodeCost{one})); got != strings.Replace(want, "8000 MB", "8.0 GB", 1) {
		t.Errorf("rows\n%s\nwant\n%s", got, want)
	}
	if rows := costRows(nil); len(rows) != 0 {
		t.Errorf("rows of nothing: %v", rows)
	}
}

func TestCertificateRows(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	in := func(days int) time.Time { return now.Add(time.Duration(days) * 24 * time.Hour) }
	got := joined(certificateRows([]certificate{{"b.example", in(3)}, {"c.example", in(30)}, {"d.example", in(60)}, {"the API", in(300)}}, now))
	const want = "certs | the API | until 26 December 2026\n | b.example, the first of 3 | until 4 March 2026, in 3d"
	if got != want {
		t.Errorf("rows\n%s\nwant\n%s", got, want)
	}
	if got := joined(certificateRows([]certificate{{"a.example", in(-1)}}, now)); !strings.Contains(got, "ended 28 February 2026") {
		t.Errorf("an old one: %s", got)
	}
}
