package conformance

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadList(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []Test
		err  string
	}{
		"names, comments and reasons": {
			"# head\n\n[sig-a] one [Conformance]\n[sig-b] two\tleft out: two nodes\n",
			[]Test{{Name: "[sig-a] one [Conformance]"}, {Name: "[sig-b] two", LeftOut: "two nodes"}}, "",
		},
		"a tab without a reason": {"[sig-a] one\tsoon\n", nil, "line 1: after the tab"},
		"a reason that is empty": {"[sig-a] one\tleft out: \n", nil, "line 1: after the tab"},
		"no name":                {"\nsome text\n", nil, `line 2: "some text" is no name`},
		"twice":                  {"[sig-a] one\n[sig-a] one\tleft out: two nodes\n", nil, "line 2: \"[sig-a] one\" is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadList(strings.NewReader(tc.text))
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestFocusMatchesWholeNamesOnly(t *testing.T) {
	focus := regexp.MustCompile(Focus([]Test{{Name: "[sig-a] it (works) [Slow]"}, {Name: "[sig-b] two"}}))
	for text, want := range map[string]bool{
		"Kubernetes e2e suite [sig-a] it (works) [Slow]": true,
		"Kubernetes e2e suite [sig-b] two":               true,
		"Kubernetes e2e suite [sig-b] two times":         false,
		"Kubernetes e2e suite [sig-a] it works [Slow]":   false,
		"Kubernetes e2e suite x[sig-b] two":              false,
	} {
		if got := focus.MatchString(text); got != want {
			t.Errorf("%q: matched %v, want %v", text, got, want)
		}
	}
}

func TestReadResults(t *testing.T) {
	results, err := ReadResults(strings.NewReader(`<testsuites><testsuite>
<testcase name="[BeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[AfterSuite]" status="failed" time="1"><failure message="m">text</failure></testcase>
<testcase name="[It] [sig-a] one" status="passed" time="1.5"></testcase>
<testcase name="[It] [sig-b] two &#34;x&#34;" status="failed" time="0.5"><failure message="no">where</failure></testcase>
<testcase name="[It] [sig-c] three" status="skipped" time="0"></testcase>
</testsuite></testsuites>`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Result{
		{"[AfterSuite]", "failed", time.Second, "m\ntext"},
		{"[sig-a] one", "passed", 1500 * time.Millisecond, ""},
		{`[sig-b] two "x"`, "failed", 500 * time.Millisecond, "no\nwhere"},
	}
	if !slices.Equal(results, want) {
		t.Errorf("got %+v, want %+v", results, want)
	}
}

func TestCompare(t *testing.T) {
	tests := []Test{{"passes", ""}, {"fails", ""}, {"absent", ""}, {"is left out", "two nodes"}, {"need not be", "two nodes"}}
	report := Compare(tests, []Result{
		{Name: "passes", Status: "passed"}, {Name: "fails", Status: "failed", Failure: "because"},
		{Name: "is left out", Status: "failed"}, {Name: "need not be", Status: "passed"}, {Name: "[AfterSuite]", Status: "failed"},
	})
	if report.Good() {
		t.Error("the report is good")
	}
	var text strings.Builder
	if err := report.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"failed: fails (failed, 0s)\n    because\n", "failed beside the tests: [AfterSuite]", "not run: absent\n", "left out, two nodes: is left out\n",
		"passes, though the list leaves it out: need not be\n", "\npasses: 1 of 1\n", "\nis left out: 0 of 1\n",
		"\n2 passed, 2 failed, 1 not run, 1 left out\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if good := Compare(tests[:1], []Result{{Name: "passes", Status: "passed"}}); !good.Good() {
		t.Errorf("not good: %+v", good)
	}
	if Compare(nil, nil).Good() {
		t.Error("a run of nothing is good")
	}
}

func readListFile(t *testing.T, path string) []Test {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	tests, err := ReadList(file)
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// TestOurListsAreWhole holds the lists against what upstream's suite has at the version that is pinned.
func TestOurListsAreWhole(t *testing.T) {
	all, apiOnly := readListFile(t, "lists/one-node.txt"), readListFile(t, "lists/api-only.txt")
	if len(all) != 446 || len(apiOnly) != 140 {
		t.Errorf("%d tests, %d that need no node; want 446 and 140", len(all), len(apiOnly))
	}
	for _, test := range apiOnly {
		if !slices.Contains(all, test) {
			t.Errorf("one-node.txt lacks %s", test.Name)
		}
	}
	var left, twoNodes []string
	for _, test := range all {
		if test.LeftOut != "" {
			left = append(left, test.Name)
		}
	}
	for _, test := range readListFile(t, "lists/two-nodes.txt") {
		twoNodes = append(twoNodes, test.Name)
	}
	if !slices.Equal(left, twoNodes) {
		t.Errorf("one-node.txt leaves out %q, two-nodes.txt has %q", left, twoNodes)
	}
	if !slices.IsSortedFunc(all, func(a, b Test) int { return strings.Compare(a.Group(), b.Group()) }) {
		t.Error("one-node.txt is not by group")
	}
}
