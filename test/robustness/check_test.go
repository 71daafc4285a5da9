package robustness

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestModel: porcupine tells right histories from wrong ones by the model.
func TestModel(t *testing.T) {
	create := Op{Verb: Create, Key: "k", Value: "a", Call: 0, Return: 10, Outcome: Done, GotRV: 5}
	for _, test := range []struct {
		name string
		ops  []Op
		good bool
	}{
		{"read after write", []Op{create, {Verb: Get, Key: "k", Call: 20, Return: 30, Outcome: Done, GotValue: "a", GotRV: 5}}, true},
		{"lost", []Op{create, {Verb: Get, Key: "k", Call: 20, Return: 30, Outcome: Missing}}, false},
		{"not yet", []Op{create, {Verb: Get, Key: "k", Call: 5, Return: 30, Outcome: Missing}}, true},
		{"stale", []Op{
			create, {Verb: Update, Key: "k", Value: "b", RV: 5, Call: 20, Return: 30, Outcome: Done, GotRV: 7},
			{Verb: Get, Key: "k", Call: 40, Return: 50, Outcome: Done, GotValue: "a", GotRV: 5},
		}, false},
		{"two won with one revision", []Op{
			create, {Verb: Update, Key: "k", Value: "b", RV: 5, Call: 20, Return: 30, Outcome: Done, GotRV: 7},
			{Client: 1, Verb: Update, Key: "k", Value: "c", RV: 5, Call: 20, Return: 30, Outcome: Done, GotRV: 8},
		}, false},
		{"unknown may be done", []Op{
			{Verb: Create, Key: "k", Value: "a", Call: 0, Return: 10, Outcome: Unknown},
			{Verb: Get, Key: "k", Call: 20, Return: 30, Outcome: Missing},
			{Verb: Get, Key: "k", Call: 40, Return: 50, Outcome: Done, GotValue: "a", GotRV: 9},
		}, true},
		{"refused may not", []Op{
			{Verb: Create, Key: "k", Value: "a", Call: 0, Return: 10, Outcome: Refused},
			{Verb: Get, Key: "k", Call: 40, Return: 50, Outcome: Done, GotValue: "a", GotRV: 9},
		}, false},
		{"back from the dead", []Op{
			create, {Verb: Delete, Key: "k", RV: 5, Call: 20, Return: 30, Outcome: Done},
			{Verb: Get, Key: "k", Call: 40, Return: 50, Outcome: Done, GotValue: "a", GotRV: 9},
		}, false},
		{"conflict without a cause", []Op{create, {Verb: Update, Key: "k", Value: "b", RV: 5, Call: 20, Return: 30, Outcome: Conflict}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := CheckLinear(test.ops, nil, time.Second)
			if (len(got.Broken) == 0) != test.good {
				t.Errorf("broken: %v, want good: %v", got.Broken, test.good)
			}
		})
	}
}

// TestStreams: each thing a watch can do wrong is found.
func TestStreams(t *testing.T) {
	ops := []Op{
		{Verb: Create, Key: "k", Value: "a", Outcome: Done, GotRV: 5}, {Verb: Update, Key: "k", Value: "b", RV: 5, Outcome: Done, GotRV: 7},
		{Verb: Delete, Key: "k", RV: 7, Outcome: Done},
	}
	all := []Event{{"ADDED", "k", "a", 5, 1}, {"MODIFIED", "k", "b", 7, 2}, {"DELETED", "k", "b", 8, 3}}
	good := Stretch{Watcher: "w", From: 1, To: 10, Events: all}
	with := func(change func(*Stretch)) Stretch {
		s := good
		s.Events = slices.Clone(all)
		change(&s)
		return s
	}
	for _, test := range []struct {
		name      string
		stretches []Stretch
		lists     []Listing
		want      string
	}{
		{"good", []Stretch{good, with(func(s *Stretch) { s.From, s.Events = 5, s.Events[1:] })}, []Listing{
			{RV: 4, Items: map[string]Version{}}, {RV: 6, Items: map[string]Version{"k": {"a", 5}}}, {RV: 9, Items: map[string]Version{}},
		}, ""},
		{"gap", []Stretch{good, with(func(s *Stretch) { s.Events = slices.Delete(s.Events, 1, 2) })}, nil, "missed MODIFIED"},
		{"gap for all", []Stretch{with(func(s *Stretch) { s.Events = slices.Delete(s.Events, 1, 2) })}, nil, "no watch told"},
		{"order", []Stretch{with(func(s *Stretch) { s.Events[0], s.Events[1] = s.Events[1], s.Events[0] })}, nil, "heard revision 5"},
		{"phantom", []Stretch{with(func(s *Stretch) { s.Events = append(s.Events, Event{"ADDED", "k", "x", 9, 4}) })}, nil, "never written"},
		{"twice", []Stretch{with(func(s *Stretch) { s.Events = append(s.Events, Event{"ADDED", "k", "a", 9, 4}) })}, nil, "told again"},
		{"two truths", []Stretch{good, with(func(s *Stretch) { s.Events[1].Value = "c" })}, nil, "for another"},
		{"list", []Stretch{good}, []Listing{{RV: 6, Items: map[string]Version{}}}, "want {a 5}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := strings.Join(CheckStreams(test.stretches, ops, test.lists).Broken, "; ")
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("broken: %q, want %q", got, test.want)
			}
		})
	}
}

func TestCounter(t *testing.T) {
	for _, test := range []struct {
		acknowledged, unknown, got int
		good                       bool
	}{{3, 1, 3, true}, {3, 1, 4, true}, {3, 1, 2, false}, {3, 1, 5, false}} {
		if err := CheckCounter(test.acknowledged, test.unknown, test.got); (err == nil) != test.good {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// TestPlan: a seed gives one schedule, which stays among the machines and has every kind in time.
func TestPlan(t *testing.T) {
	a, b, other := Plan(7, 3, 1), Plan(7, 3, 1), Plan(8, 3, 1)
	kinds, same := map[Kind]bool{}, true
	for range 1000 {
		f, again := a(), b()
		if f != again {
			t.Fatalf("%v and %v of one seed", f, again)
		}
		same = same && f == other()
		kinds[f.Kind] = true
		if f.Machine < 0 || f.Machine > 2 || f.Other < 0 || f.Other > 2 || f.For > 9*time.Second {
			t.Fatalf("%v", f)
		}
	}
	if len(kinds) != len(weighed) || same {
		t.Errorf("%d kinds of %d, same for another seed: %v", len(kinds), len(weighed), same)
	}
	if got := Plan(1, 3, 0, KillAll)().Kind; got != KillAll {
		t.Errorf("%s, want the only one", got)
	}
}

func TestBudget(t *testing.T) {
	write := func(at int64, server int, outcome Outcome) Op {
		return Op{Verb: Update, Server: server, Call: at, Return: at + 1, Outcome: outcome}
	}
	rows := Budget([]Happened{{Fault: Fault{Kind: KillServer}, Machines: []int{1}, Begin: 10, End: 20, Recovered: 30}}, []Op{
		write(1, 0, Done), write(9, 0, Done), write(12, 1, Unknown), write(13, 0, Refused), write(25, 0, Done), write(40, 1, Done),
	})
	want := []Row{{Kind: KillServer, Times: 1, Requests: 3, Hurt: 1, Others: 1, NoWrite: 16, Recovery: 10}, {Kind: "none", Requests: 3}}
	if !slices.Equal(rows, want) {
		t.Errorf("%+v, want %+v", rows, want)
	}
}
