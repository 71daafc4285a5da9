package plan

import "testing"

func TestText(t *testing.T) {
	pods := func(n int, p PodChange) []PodChange {
		out := make([]PodChange, n)
		for i := range out {
			out[i] = p
		}
		return out
	}
	result := Result{
		Objects: []ObjectChange{
			{Verb: Changed, Kind: "Deployment", Namespace: "shop", Name: "web", Fields: []string{"spec.replicas"}},
			{Verb: Created, Kind: "Namespace", Name: "new"},
		},
		Settled: true,
	}
	result.Pods = append(result.Pods, pods(2, PodChange{Verb: Created, Namespace: "shop", Owner: "Deployment/web", To: "n1"})...)
	result.Pods = append(result.Pods,
		PodChange{Verb: Created, Namespace: "shop", Owner: "Deployment/web", To: "n2"},
		PodChange{Verb: Moved, Namespace: "shop", Name: "db-0", Owner: "StatefulSet/db", From: "n1", To: "n2"},
		PodChange{Verb: Pending, Namespace: "shop", Name: "x", Message: "0/2 nodes are available: 2 Insufficient cpu."},
		PodChange{Verb: Preempted, Namespace: "batch", Owner: "Job/night", From: "n2", Message: "a pod of higher priority needs its place"})
	const want = `changed   Deployment/web   shop   spec.replicas
created   Namespace/new    

created     2 pods of Deployment/web     shop    on n1
created     1 pod of Deployment/web      shop    on n2
moved       Pod/db-0 of StatefulSet/db   shop    from n1 to n2
pending     Pod/x                        shop    0/2 nodes are available: 2 Insufficient cpu.
preempted   1 pod of Job/night           batch   on n2: a pod of higher priority needs its place

pods: 3 created, 1 moved, 1 left pending, 1 preempted; nothing was changed
`
	if got := result.Text(); got != want {
		t.Errorf("text is\n%s\nwant\n%s", got, want)
	}
	if got := (&Result{Settled: true}).Text(); got != "nothing would change\n" {
		t.Errorf("text of nothing is %q", got)
	}
	if got := (&Result{Missing: []string{"secrets"}}).Warnings(); len(got) != 2 {
		t.Errorf("warnings are %q", got)
	}

	answer := Answer{
		Namespace: "shop", Pod: "web-1", Message: "0/2 nodes are available: ...", Cures: []string{"kubectl uncordon n1: then n1 takes it"},
		Nodes: []Node{
			{Name: "n1", Filter: "NodeUnschedulable", Reasons: []string{"node(s) were unschedulable"}},
			{Name: "n2", Filter: "NodeResourcesFit", Reasons: []string{"Insufficient cpu"}, Evicting: true},
			{Name: "n3", Score: 430, Scores: []Score{{"TaintToleration", 100, 3}, {"ImageLocality", 0, 1}}},
		},
	}
	const wantAnswer = `pod shop/web-1 has no node: 0/2 nodes are available: ...

NODE   SCORE   WHY
n3     430     TaintToleration 100×3, ImageLocality 0×1
n1     -       NodeUnschedulable: node(s) were unschedulable
n2     -       NodeResourcesFit: Insufficient cpu (evicting pods of lower priority could help)

Any of these alone would help:
- kubectl uncordon n1: then n1 takes it
`
	if got := answer.Text(); got != wantAnswer {
		t.Errorf("text is\n%s\nwant\n%s", got, wantAnswer)
	}
}
