package job

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseIndexes(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string
		limit int
		want  string
	}{
		"nothing":            {"", 10, ""},
		"runs":               {"1,3-5,7", 10, "1,3-5,7"},
		"pairs have a comma": {"1-2,5-6", 10, "1,2,5,6"},
		"adjacent ones join": {"1,2,3", 10, "1-3"},
		"beyond the limit":   {"1,3-5,7", 5, "1,3,4"},
		"all beyond":         {"7", 5, ""},
		"nonsense":           {"x,1,2-y,4", 10, "1,4"},
		"negative":           {"-1,3", 10, "3"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parseIndexes(tc.text, tc.limit).String(); got != tc.want {
				t.Errorf("parseIndexes(%q, %d) = %q, want %q", tc.text, tc.limit, got, tc.want)
			}
		})
	}
}

// TestIntervalsAreSets compares every operation with plain sets of numbers.
func TestIntervalsAreSets(t *testing.T) {
	const limit = 30
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() (intervals, map[int]bool) {
		var list []int
		set := map[int]bool{}
		for range random.IntN(limit) {
			index := random.IntN(limit)
			list, set[index] = append(list, index), true
		}
		return intervals(nil).with(list), set
	}
	sorted := func(in func(int) bool) (out []int) {
		for i := range limit {
			if in(i) {
				out = append(out, i)
			}
		}
		return out
	}
	for range 2000 {
		a, inA := draw()
		b, inB := draw()
		if got := parseIndexes(a.String(), limit); !slices.Equal(got, a) {
			t.Fatalf("%v written and read is %v", a, got)
		}
		both := a.union(b)
		if diff := cmp.Diff(sorted(func(i int) bool { return inA[i] || inB[i] }), sorted(both.has)); diff != "" {
			t.Fatalf("%v and %v (-want +got):\n%s", a, b, diff)
		}
		if got, want := a.common(b), len(sorted(func(i int) bool { return inA[i] && inB[i] })); got != want {
			t.Fatalf("%v and %v have %d in common, want %d", a, b, got, want)
		}
		if got, want := both.total(), len(sorted(both.has)); got != want {
			t.Fatalf("%v has %d, want %d", both, got, want)
		}
		count := random.IntN(limit)
		want := sorted(func(i int) bool { return !inA[i] })
		want = want[:min(len(want), count)]
		if got := a.gaps(limit, count); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("gaps of %v = %v, want %v", a, got, want)
		}
	}
}

func FuzzParseIndexes(f *testing.F) {
	f.Add("1,3-5,7", 10)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = min(max(limit, 0), 1000)
		got := parseIndexes(text, limit)
		for _, i := range got {
			if i.first >= limit || i.last >= limit {
				t.Errorf("parseIndexes(%q, %d) = %v", text, limit, got)
			}
		}
	})
}
