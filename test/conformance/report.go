package conformance

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Report is a run held against its list.
type Report struct {
	Passed   []Result
	Failed   []Result // had to pass
	LeftOut  []Test   // were not run, or may fail and did
	Unmarked []Result // pass, though the list leaves them out
	NotRun   []Test   // had to pass and were not even run: the list names what the suite does not have
	Others   []Result // failed, and are not in the list: steps before or after the suite
}

// Wanted are the tests to run: those that must pass, and if all those that are left out too.
func Wanted(tests []Test, all bool) []Test {
	return slices.DeleteFunc(slices.Clone(tests), func(t Test) bool { return t.LeftOut != "" && !all })
}

// Compare sorts results by what the list expects. Without a list every test had to pass.
func Compare(tests []Test, results []Result) Report {
	var report Report
	byName := make(map[string]Result, len(results))
	for _, result := range results {
		byName[result.Name] = result
	}
	for _, test := range tests {
		result, ran := byName[test.Name]
		delete(byName, test.Name)
		switch {
		case test.LeftOut != "" && ran && result.Passed():
			report.Unmarked = append(report.Unmarked, result)
		case test.LeftOut != "":
			report.LeftOut = append(report.LeftOut, test)
		case !ran:
			report.NotRun = append(report.NotRun, test)
		case result.Passed():
			report.Passed = append(report.Passed, result)
		default:
			report.Failed = append(report.Failed, result)
		}
	}
	for _, result := range byName {
		switch {
		case result.Passed():
			report.Passed = append(report.Passed, result)
		case len(tests) == 0:
			report.Failed = append(report.Failed, result)
		default:
			report.Others = append(report.Others, result)
		}
	}
	for _, list := range [][]Result{report.Passed, report.Failed, report.Others} {
		slices.SortFunc(list, func(a, b Result) int { return cmp.Compare(a.Name, b.Name) })
	}
	return report
}

// Good reports whether everything that had to pass was run and passed.
func (r Report) Good() bool {
	return len(r.Failed)+len(r.NotRun)+len(r.Others) == 0 && len(r.Passed)+len(r.Unmarked) > 0
}

// Count says how the tests of a group ended. Total counts also those that were not run.
type Count struct {
	Group         string
	Passed, Total int
}

// Groups counts the tests by their group, in the groups' order.
func (r Report) Groups() []Count {
	counts := map[string]Count{}
	add := func(name string, passed int) {
		c := counts[group(name)]
		counts[group(name)] = Count{Group: group(name), Passed: c.Passed + passed, Total: c.Total + 1}
	}
	for _, results := range [][]Result{r.Passed, r.Unmarked} {
		for _, result := range results {
			add(result.Name, 1)
		}
	}
	for _, result := range r.Failed {
		add(result.Name, 0)
	}
	for _, tests := range [][]Test{r.NotRun, r.LeftOut} {
		for _, test := range tests {
			add(test.Name, 0)
		}
	}
	return slices.SortedFunc(maps.Values(counts), func(a, b Count) int { return cmp.Compare(a.Group, b.Group) })
}

// Write prints the report for people; its last line counts.
func (r Report) Write(to io.Writer) error {
	var text strings.Builder
	for _, list := range []struct {
		title   string
		results []Result
	}{{"failed", r.Failed}, {"failed beside the tests", r.Others}} {
		for _, result := range list.results {
			_, _ = fmt.Fprintf(&text, "%s: %s (%s, %v)\n%s\n", list.title, result.Name, result.Status, result.Took.Round(time.Second), indent(result.Failure))
		}
	}
	for _, test := range r.NotRun {
		_, _ = fmt.Fprintf(&text, "not run: %s\n", test.Name)
	}
	for _, test := range r.LeftOut {
		_, _ = fmt.Fprintf(&text, "left out, %s: %s\n", test.LeftOut, test.Name)
	}
	for _, result := range r.Unmarked {
		_, _ = fmt.Fprintf(&text, "passes, though the list leaves it out: %s\n", result.Name)
	}
	for _, count := range r.Groups() {
		_, _ = fmt.Fprintf(&text, "%s: %d of %d\n", count.Group, count.Passed, count.Total)
	}
	_, _ = fmt.Fprintf(&text, "%d passed, %d failed, %d not run, %d left out\n",
		len(r.Passed)+len(r.Unmarked), len(r.Failed)+len(r.Others), len(r.NotRun), len(r.LeftOut))
	if _, err := io.WriteString(to, text.String()); err != nil {
		return fmt.Errorf("conformance: print the report: %w", err)
	}
	return nil
}

// indent keeps the first lines of what a test says, which name the cause.
func indent(text string) string {
	const most = 12
	lines := strings.Split(text, "\n")
	if len(lines) > most {
		lines = append(lines[:most], "...")
	}
	return "    " + strings.Join(lines, "\n    ")
}
