package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/heartbeat"
)

// fleet drives Heartbeats in steps of 10 ms with nodes that send beats.
type fleet struct {
	t     *testing.T
	h     *Heartbeats
	now   time.Time
	due   time.Time // of the next tick
	quiet map[string]bool
	names []string
	said  map[string]time.Duration // what the nodes announce as their deadline
	told  []string                 // what ticks told
	began time.Time
}

func newFleet(t *testing.T, nodes int) *fleet {
	t.Helper()
	h, err := NewHeartbeats(HeartbeatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, h: h, now: time.Unix(1000, 0), quiet: map[string]bool{}, said: map[string]time.Duration{}}
	h.Lead(f.now)
	for i := range nodes {
		name := fmt.Sprintf("n%03d", i)
		f.names = append(f.names, name)
		h.know(f.now, name, view{expected: true, ready: corev1.ConditionTrue, takes: true})
	}
	f.run(2 * time.Second)
	f.mark()
	return f
}

// mark begins to count time anew.
func (f *fleet) mark() { f.began, f.told = f.now, nil }

func (f *fleet) silence(names ...string) {
	f.quiet = map[string]bool{}
	for _, name := range names {
		f.quiet[name] = true
	}
}

func (f *fleet) beat(name string) heartbeat.Answer {
	return f.h.Beat(f.now, heartbeat.Beat{Name: name, FenceMillis: f.said[name].Milliseconds()})
}

// run lets time pass.
func (f *fleet) run(d time.Duration) {
	for end := f.now.Add(d); f.now.Before(end); f.now = f.now.Add(10 * time.Millisecond) {
		for i, name := range f.names {
			if !f.quiet[name] && (f.now.UnixMilli()+int64(i)*70)%heartbeat.Every.Milliseconds() == 0 {
				f.beat(name)
			}
		}
		f.tick()
	}
}

func (f *fleet) tick() {
	if f.now.Before(f.due) {
		return
	}
	changed, next := f.h.tick(f.now)
	f.due = f.now.Add(next)
	for _, name := range changed {
		state := "back"
		if f.h.of(f.now, name).dead {
			state = "dead"
		}
		f.told = append(f.told, fmt.Sprintf("%s %s %v", name, state, f.now.Sub(f.began).Round(100*time.Millisecond)))
	}
}

func (f *fleet) want(what string, want ...string) {
	f.t.Helper()
	if strings.Join(f.told, ", ") != strings.Join(want, ", ") {
		f.t.Errorf("%s: told %q, want %q", what, f.told, want)
	}
}

func TestHeartbeatsOfOneNode(t *testing.T) {
	for name, nodes := range map[string]int{"of two": 2, "of three": 3, "of 300": 300} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, nodes)
			f.silence("n001")
			f.run(1200 * time.Millisecond)
			f.want("a while of silence")
			f.run(800 * time.Millisecond)
			if len(f.told) != 1 || !strings.HasPrefix(f.told[0], "n001 dead 1.") {
				t.Errorf("told %q, want that n001 is dead within 2 s", f.told)
			}
			f.mark()
			f.silence()
			f.run(time.Second)
			if len(f.told) != 1 || !strings.HasPrefix(f.told[0], "n001 back") {
				t.Errorf("told %q, want that n001 is back", f.told)
			}
		})
	}
}

// Beats that come up to 1.1 s late are no reason for anything.
func TestHeartbeatsComeLate(t *testing.T) {
	f := newFleet(t, 3)
	for range 100 {
		f.silence("n001", "n002")
		f.run(1100 * time.Millisecond)
		f.silence()
		f.run(300 * time.Millisecond)
	}
	f.want("late beats")
}

// A server that was paused, or whose ticks come late, does not take that for silence.
func TestServersOwnPause(t *testing.T) {
	for name, pause := range map[string]time.Duration{"short": 1400 * time.Millisecond, "long": time.Hour} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, 3)
			f.silence("n001")
			f.run(time.Second)
			f.now = f.now.Add(pause)
			if answer := f.beat("n000"); answer.Leads {
				t.Error("a server that was paused claims to lead before it could know")
			}
			f.run(200 * time.Millisecond)
			f.want("a pause")
			if answer := f.beat("n000"); !answer.Leads {
				t.Error("the server does not lead any more")
			}
			f.run(500 * time.Millisecond)
			if len(f.told) != 1 || !strings.HasPrefix(f.told[0], "n001 dead") {
				t.Errorf("after the pause told %q, want that n001 is dead", f.told)
			}
		})
	}
}

func TestMostNodesAtOnce(t *testing.T) {
	f := newFleet(t, 100)
	f.silence(f.names[:60]...)
	f.run(5 * time.Second)
	f.want("60 of 100 silent for 5 s")
	f.silence()
	f.run(5 * time.Second)
	f.want("all back")
	f.silence(f.names[:60]...)
	f.run(9500 * time.Millisecond)
	f.want("60 of 100 silent for 9.5 s")
	f.run(time.Second)
	if len(f.told) != 60 {
		t.Errorf("%d nodes are dead after 10.5 s, want 60", len(f.told))
	}
	f.mark()
	f.silence(append(slices.Clone(f.names[:60]), f.names[70:75]...)...)
	f.run(2 * time.Second)
	if len(f.told) != 5 {
		t.Errorf("told %q: 5 more of the 40 that are left must be dead within 2 s", f.told)
	}
}

func TestHalfTheNodesAtOnceAreDeadAtOnce(t *testing.T) {
	f := newFleet(t, 100)
	f.silence(f.names[:50]...)
	f.run(2 * time.Second)
	if len(f.told) != 50 {
		t.Errorf("%d nodes are dead after 2 s, want 50", len(f.told))
	}
}

func TestAnnouncedRestart(t *testing.T) {
	f := newFleet(t, 3)
	f.h.Beat(f.now, heartbeat.Beat{Name: "n001", Leaving: heartbeat.LeavingRestart})
	f.silence("n001")
	f.run(59 * time.Second)
	f.want("a restart of 59 s")
	f.run(2 * time.Second)
	if len(f.told) != 1 {
		t.Errorf("told %q after 61 s, want that n001 is dead", f.told)
	}
}

func TestNewLeader(t *testing.T) {
	f := newFleet(t, 3)
	f.h.Follow()
	if answer := f.beat("n000"); answer.Leads || answer.Takeover {
		t.Errorf("a follower answers %+v", answer)
	}
	f.silence("n001")
	f.now = f.now.Add(time.Minute) // nobody ticks
	f.h.Lead(f.now)
	for _, name := range f.names {
		f.h.know(f.now, name, view{expected: true, ready: corev1.ConditionTrue, takes: true})
	}
	f.due, f.told = time.Time{}, nil
	f.mark()
	f.run(4500 * time.Millisecond)
	f.want("every node counts as just heard")
	f.run(time.Second)
	f.want("one that is never heard", "n001 dead 5s")
}

func TestFlapping(t *testing.T) {
	f := newFleet(t, 3)
	var got []time.Duration
	for range 10 {
		f.silence("n001")
		f.run(2 * time.Second)
		f.silence()
		f.run(500 * time.Millisecond)
		got = append(got, f.h.of(f.now, "n001").settling.Round(time.Second))
	}
	want := []time.Duration{0, 4, 8, 16, 32, 64, 128, 256, 300, 300}
	for i := range want {
		if d := want[i]*time.Second - got[i]; d < 0 || d > time.Second {
			t.Errorf("after death %d the node gets no pods for %v, want about %v", i+1, got[i], want[i]*time.Second)
		}
	}
	f.run(6 * time.Minute)
	if left := f.h.of(f.now, "n001").settling; left != 0 {
		t.Errorf("after 6 minutes of quiet %v are left", left)
	}
}

func TestTakeover(t *testing.T) {
	f := newFleet(t, 2)
	if answer := f.beat("n000"); !answer.Takeover || answer.Report {
		t.Errorf("with another node the answer is %+v", answer)
	}
	f.h.know(f.now, "n001", view{expected: true, ready: corev1.ConditionUnknown})
	if answer := f.beat("n000"); answer.Takeover {
		t.Error("a node that is not ready counts as one that could take pods over")
	}
	if answer := f.beat("n001"); !answer.Takeover || !answer.Report {
		t.Errorf("a node of unknown state is answered %+v", answer)
	}
	f.h.forget("n000")
	if answer := f.beat("n001"); answer.Takeover {
		t.Error("a node that is gone counts as one that could take pods over")
	}
}

// What is fenced is given away only after the deadline and the margin, and only if the node has said last that it fences.
func TestRelease(t *testing.T) {
	const deadline, margin = 10 * time.Second, 5 * time.Second
	for name, tc := range map[string]struct {
		prepare func(f *fleet)
		after   time.Duration // 0: never
	}{
		"fenced":     {func(f *fleet) { f.said["n001"] = deadline; f.run(time.Second) }, deadline + margin},
		"not fenced": {func(f *fleet) { f.run(time.Second) }, 0},
		"disarmed": {func(f *fleet) {
			f.said["n001"] = deadline
			f.run(time.Second)
			f.said["n001"] = 0
			f.run(time.Second)
		}, 0},
		"restarting": {func(f *fleet) {
			f.run(time.Second)
			f.h.Beat(f.now, heartbeat.Beat{Name: "n001", FenceMillis: deadline.Milliseconds(), Leaving: heartbeat.LeavingRestart})
		}, heartbeat.RestartGrace + margin},
		"of a former leader, heard a moment ago": {func(f *fleet) {
			f.said["n001"] = deadline
			f.run(time.Second)
			f.h.Follow()
			f.h.Lead(f.now)
			for _, name := range f.names {
				f.h.know(f.now, name, view{expected: true, ready: corev1.ConditionTrue, takes: true})
			}
		}, deadline + margin},
		"of a former leader, heard long ago": {func(f *fleet) {
			f.said["n001"] = deadline
			f.run(time.Second)
			f.h.Follow()
			f.now = f.now.Add(7 * time.Second)
			f.h.Lead(f.now)
			for _, name := range f.names {
				f.h.know(f.now, name, view{expected: true, ready: corev1.ConditionTrue, takes: true})
			}
			f.due = time.Time{}
		}, 0},
		"of a former leader, heard before a slow election": {func(f *fleet) {
			f.said["n001"] = deadline
			f.run(time.Second)
			f.h.Follow()
			f.now = f.now.Add(5 * time.Second)
			f.h.Lead(f.now)
			for _, name := range f.names {
				f.h.know(f.now, name, view{expected: true, ready: corev1.ConditionTrue, takes: true})
			}
			f.due = time.Time{}
		}, deadline + margin},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, 3)
			tc.prepare(f)
			f.silence("n001")
			f.mark()
			if tc.after == 0 {
				f.run(time.Hour / 10)
				if s := f.h.of(f.now, "n001"); !s.dead || s.released || s.release != 0 {
					t.Errorf("after six minutes: %+v; want dead and never released", s)
				}
				return
			}
			f.run(tc.after - 500*time.Millisecond)
			if f.h.of(f.now, "n001").released {
				t.Errorf("released before %v", tc.after)
			}
			f.run(time.Second)
			if !f.h.of(f.now, "n001").released {
				t.Errorf("not released after %v: %+v", tc.after, f.h.of(f.now, "n001"))
			}
		})
	}
}

func TestPlanZone(t *testing.T) {
	for name, tc := range map[string]struct {
		zones map[string]zoneCount
		want  eviction
	}{
		"one of three down":      {map[string]zoneCount{"a": {3, 2}}, evictNow},
		"two of three down":      {map[string]zoneCount{"a": {3, 1}}, evictNow},
		"one of two down":        {map[string]zoneCount{"a": {2, 1}}, evictNow},
		"three of five down":     {map[string]zoneCount{"a": {5, 2}}, evictNoMore},
		"most of 100 down":       {map[string]zoneCount{"a": {100, 40}}, evictSlowly},
		"just less of 100 down":  {map[string]zoneCount{"a": {100, 46}}, evictNow},
		"all down":               {map[string]zoneCount{"a": {5, 0}}, evictNever},
		"all zones down":         {map[string]zoneCount{"a": {5, 0}, "b": {2, 0}}, evictNever},
		"a zone down as a whole": {map[string]zoneCount{"a": {5, 0}, "b": {2, 2}}, evictNow},
		"a zone that is gone":    {map[string]zoneCount{"a": {5, 0}, "b": {}}, evictNever},
	} {
		t.Run(name, func(t *testing.T) {
			if got := planZone(tc.zones, "a"); got != tc.want {
				t.Errorf("planZone = %v, want %v", got, tc.want)
			}
		})
	}
}

func BenchmarkBeat(b *testing.B) {
	h, err := NewHeartbeats(HeartbeatOptions{})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Unix(1, 0)
	h.Lead(now)
	b.ReportAllocs()
	for b.Loop() {
		h.Beat(now, heartbeat.Beat{Name: "n"})
	}
}

func BenchmarkTick(b *testing.B) {
	h, err := NewHeartbeats(HeartbeatOptions{})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Unix(1, 0)
	h.Lead(now)
	for i := range 1000 {
		name := fmt.Sprint(i)
		h.know(now, name, view{expected: true, takes: true})
		h.Beat(now, heartbeat.Beat{Name: name})
	}
	b.ReportAllocs()
	for b.Loop() {
		h.tick(now)
	}
}
