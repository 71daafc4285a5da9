package main

import (
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	for name, tc := range map[string]struct {
		row  row
		want string
	}{
		"no target":             {row{Gantry: series{1}}, ""},
		"not measured":          {row{Target: target{valueMost, 5, ""}}, ""},
		"no upstream":           {row{Gantry: series{9}, Target: target{ratioLeast, 4, ""}}, ""},
		"ratio reached":         {row{Gantry: series{8}, Upstream: series{2}, Target: target{ratioLeast, 4, ""}}, "yes"},
		"ratio missed":          {row{Gantry: series{6}, Upstream: series{2}, Target: target{ratioLeast, 4, ""}}, "no: 25% off"},
		"share reached":         {row{Gantry: series{1}, Upstream: series{8}, Target: target{ratioMost, 0.25, "1/4"}}, "yes"},
		"share missed":          {row{Gantry: series{4}, Upstream: series{8}, Target: target{ratioMost, 0.25, "1/4"}}, "no: 100% off"},
		"value reached":         {row{Gantry: series{500}, Target: target{valueMost, 600, ""}}, "yes"},
		"value missed":          {row{Gantry: series{900}, Target: target{valueMost, 600, ""}}, "no: 50% off"},
		"median of the rounds":  {row{Gantry: series{500, 9000, 550}, Target: target{valueMost, 600, ""}}, "yes"},
		"least value is missed": {row{Gantry: series{750}, Target: target{valueLeast, 1500, ""}}, "no: 50% off"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.row.verdict(); got != tc.want {
				t.Errorf("verdict = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWriteTable(t *testing.T) {
	var out strings.Builder
	err := writeTable(&out, []row{
		{Name: "GET: server CPU", Unit: "µs", Gantry: series{40, 60, 50}, Upstream: series{400}, Target: target{ratioMost, 1.0 / 6, "1/6"}},
		{Name: "first pod", Unit: "ms", Gantry: series{1234}},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{
		"figure unit Gantry upstream ratio target met",
		"GET: server CPU µs 50.0 (40.0-60.0) 400 0.12 ratio ≤ 1/6 yes",
		"first pod ms 1234 - -",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d = %q, want %q", i, got, want)
		}
	}
}
