package conformance

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Result is how a test ended.
type Result struct {
	Name    string // as in a list
	Status  string // "passed", "failed", "timedout", "panicked", ...
	Took    time.Duration
	Failure string // what the suite says, empty when passed
}

// Passed reports whether the test passed.
func (r Result) Passed() bool { return r.Status == "passed" }

// ReadResults reads a JUnit report of the suite: the tests that were run, by name. Steps before
// and after the whole suite are there only if they failed.
func ReadResults(from io.Reader) ([]Result, error) {
	var report struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Seconds float64 `xml:"time,attr"`
			Failure *said   `xml:"failure"`
			Error   *said   `xml:"error"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.NewDecoder(from).Decode(&report); err != nil {
		return nil, fmt.Errorf("conformance: read the suite's report: %w", err)
	}
	var results []Result
	for _, c := range report.Cases {
		name, isTest := strings.CutPrefix(c.Name, "[It] ")
		result := Result{
			Name: strings.TrimSpace(name), Status: c.Status, Took: time.Duration(c.Seconds * float64(time.Second)),
		}
		if failure := cmp.Or(c.Failure, c.Error); failure != nil {
			result.Failure = strings.TrimSpace(failure.Message + "\n" + failure.Text)
		}
		if c.Status == "skipped" || !isTest && result.Passed() {
			continue
		}
		results = append(results, result)
	}
	slices.SortFunc(results, func(a, b Result) int { return cmp.Compare(a.Name, b.Name) })
	return results, nil
}

type said struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}
