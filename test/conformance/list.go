package conformance

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// leftOut parts a test's name from the reason why it is not run.
const leftOut = "\tleft out: "

// Test is a line of a list.
type Test struct {
	Name    string // as the suite prints it, without "[It] "
	LeftOut string // why it is not run; empty: the test must pass
}

// Group is the special interest group that a test belongs to, "[sig-node]".
func (t Test) Group() string { return group(t.Name) }

func group(name string) string {
	first, _, found := strings.Cut(name, "]")
	if !found {
		return name
	}
	return first + "]"
}

// ReadList reads a list: a test's name a line, maybe followed by a tab, "left out:" and a reason.
// Empty lines and lines that start with # say nothing.
func ReadList(from io.Reader) ([]Test, error) {
	var tests []Test
	seen := make(map[string]bool)
	lines := bufio.NewScanner(from)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, leftOut)
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		switch {
		case strings.Contains(line, "\t") && reason == "":
			return nil, fmt.Errorf("conformance: line %d: after the tab stands %q and a reason", number, strings.TrimSpace(leftOut))
		case !strings.HasPrefix(name, "[sig-"):
			return nil, fmt.Errorf("conformance: line %d: %q is no name of a test: it starts with [sig-", number, name)
		case seen[name]:
			return nil, fmt.Errorf("conformance: line %d: %q is there twice", number, name)
		}
		seen[name] = true
		tests = append(tests, Test{Name: name, LeftOut: reason})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("conformance: read a list: %w", err)
	}
	return tests, nil
}

// Focus is the regular expression for the suite that matches these tests and no others.
func Focus(tests []Test) string {
	names := make([]string, 0, len(tests))
	for _, test := range tests {
		names = append(names, regexp.QuoteMeta(test.Name))
	}
	return `(?:^| )(?:` + strings.Join(names, "|") + `) *$`
}
