package archtest

import (
	"fmt"
	"slices"
	"strings"
)

const module = "gantry.dev/gantry"

// layers is layers.txt, parsed.
type layers struct {
	groups   map[string][]string
	packages map[string][]string // pattern to what it may import
	own      map[string][]string // external path to the packages that may import it
	tests    []string
}

func parseLayers(text string) (layers, error) {
	l := layers{groups: map[string][]string{}, packages: map[string][]string{}, own: map[string][]string{}}
	for number, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, members, ok := strings.Cut(line, "="); ok && strings.HasPrefix(line, "@") {
			l.groups[strings.TrimSpace(name)] = strings.Fields(members)
			continue
		}
		left, right, ok := strings.Cut(line, ":")
		if !ok {
			return l, fmt.Errorf("layers.txt:%d: %q is neither a group nor a rule", number+1, line)
		}
		var allowed []string
		for _, word := range strings.Fields(right) {
			if group, ok := l.groups[word]; ok {
				allowed = append(allowed, group...)
			} else if strings.HasPrefix(word, "@") {
				return l, fmt.Errorf("layers.txt:%d: there is no group %s", number+1, word)
			} else {
				allowed = append(allowed, word)
			}
		}
		left = strings.TrimSpace(left)
		into := l.packages
		if path, ok := strings.CutPrefix(left, "own "); ok {
			left, into = strings.TrimSpace(path), l.own
		}
		if left == "tests" {
			l.tests = allowed
			continue
		}
		if _, twice := into[left]; twice {
			return l, fmt.Errorf("layers.txt:%d: %s has two lines", number+1, left)
		}
		into[left] = allowed
	}
	return l, nil
}

// matches reports whether pattern stands for the package.
func matches(pattern, pkg string) bool {
	if pattern == "*" || pattern == pkg {
		return true
	}
	dir, ok := strings.CutSuffix(pattern, "/*")
	return ok && strings.HasPrefix(pkg, dir+"/")
}

func anyMatches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// ruleFor returns what the package may import: by its own line, else by the longest pattern.
func (l layers) ruleFor(pkg string) (allowed []string, ok bool) {
	if allowed, ok = l.packages[pkg]; ok {
		return allowed, true
	}
	best := ""
	for pattern := range l.packages {
		if pattern != "*" && matches(pattern, pkg) && len(pattern) > len(best) {
			best = pattern
		}
	}
	return l.packages[best], best != ""
}

// short writes an import path of our module as layers.txt does, or returns false for another's.
func short(path string) (string, bool) {
	if rest, ok := strings.CutPrefix(path, module+"/internal/"); ok {
		return rest, true
	}
	if rest, ok := strings.CutPrefix(path, module+"/"); ok {
		return "/" + rest, true
	}
	return "", false
}

// check says what is wrong with one import, or "". It is pure.
func (l layers) check(pkg, path string, test bool) string {
	if ours, ok := short(path); ok {
		if ours == pkg {
			return "" // an external test of the package
		}
		allowed, known := l.ruleFor(pkg)
		if !known {
			return "" // reported once, for the package
		}
		if anyMatches(allowed, ours) || test && anyMatches(l.tests, ours) {
			return ""
		}
		return fmt.Sprintf("may not import %s; move the code, or add %q to the line of %q in layers.txt and say why in the commit", ours, ours, pkg)
	}
	if test {
		return "" // tests may look at anything outside
	}
	owner, best := []string(nil), ""
	for prefix, owners := range l.own {
		whole := path == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
		if whole && len(prefix) > len(best) {
			owner, best = owners, prefix
		}
	}
	if best != "" && !anyMatches(owner, pkg) {
		return fmt.Sprintf("may not import %s, which belongs to %s", path, strings.Join(owner, ", "))
	}
	return ""
}
