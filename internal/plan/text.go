package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Text is the result as a person reads it. Pods of one owner that fare alike are counted in one line: their names are made
// up anew when it really happens.
func (r *Result) Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, o := range r.Objects {
		line := fmt.Sprintf("%s\t%s/%s\t%s", o.Verb, o.Kind, o.Name, o.Namespace)
		if len(o.Fields) > 0 {
			line += "\t" + strings.Join(o.Fields, ", ")
		}
		_, _ = fmt.Fprintln(w, line)
	}
	_ = w.Flush() // a strings.Builder takes everything
	if len(r.Objects) > 0 && len(r.Pods) > 0 {
		b.WriteString("\n")
	}
	w = tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, g := range r.groups() {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", g.verb, g.what(), g.namespace, g.where())
	}
	_ = w.Flush()
	if b.Len() == 0 {
		b.WriteString("nothing would change\n")
	}
	if summary := r.summary(); summary != "" {
		b.WriteString("\n" + summary + "\n")
	}
	return b.String()
}

// group is pods of one owner that fare alike.
type group struct {
	verb                                      Verb
	namespace, owner, name, from, to, message string
	count                                     int
}

func (r *Result) groups() []group {
	var out []group
	for _, p := range r.Pods {
		g := group{verb: p.Verb, namespace: p.Namespace, owner: p.Owner, from: p.From, to: p.To, message: p.Message, count: 1}
		if p.Owner == "" || p.Verb == Moved || p.Verb == Replaced {
			g.name = p.Name // it keeps its name
		}
		at := slices.IndexFunc(out, func(o group) bool {
			o.count = 1
			return o == g
		})
		if at >= 0 && g.name == "" {
			out[at].count++
			continue
		}
		out = append(out, g)
	}
	return out
}

func (g *group) what() string {
	switch {
	case g.name != "" && g.owner != "":
		return fmt.Sprintf("Pod/%s of %s", g.name, g.owner)
	case g.name != "":
		return "Pod/" + g.name
	case g.count == 1:
		return "1 pod of " + g.owner
	}
	return fmt.Sprintf("%d pods of %s", g.count, g.owner)
}

func (g *group) where() string {
	var text string
	switch {
	case g.verb == Moved:
		text = fmt.Sprintf("from %s to %s", g.from, g.to)
	case g.verb == Pending:
		return cmp.Or(g.message, "no node takes it")
	case g.to != "" && g.from == "":
		text = "on " + g.to
	case g.from != "":
		text = "on " + g.from
	}
	if g.message != "" {
		text += ": " + g.message
	}
	return text
}

func (r *Result) summary() string {
	counts := map[Verb]int{}
	for _, p := range r.Pods {
		counts[p.Verb]++
	}
	var parts []string
	for _, verb := range slices.Sorted(maps.Keys(counts)) {
		word := string(verb)
		if verb == Pending {
			word = "left pending"
		}
		parts = append(parts, fmt.Sprintf("%d %s", counts[verb], word))
	}
	if len(parts) == 0 {
		return ""
	}
	return "pods: " + strings.Join(parts, ", ") + "; nothing was changed"
}

// Warnings say what the result does not know.
func (r *Result) Warnings() []string {
	out := missingWarning(r.Missing)
	if !r.Settled {
		out = append(out, "the copy was still changing when the time was up: see --timeout")
	}
	return out
}

func missingWarning(missing []string) []string {
	if len(missing) == 0 {
		return nil
	}
	return []string{"you may not read " + strings.Join(missing, ", ") + ": the answer does without them"}
}

// Text is the answer as a person reads it.
func (a *Answer) Text() string {
	var b strings.Builder
	switch {
	case a.Node != "" && a.Best != "" && a.Best != a.Node:
		fmt.Fprintf(&b, "pod %s/%s is on %s; placed now, it would go to %s\n", a.Namespace, a.Pod, a.Node, a.Best)
	case a.Node != "":
		fmt.Fprintf(&b, "pod %s/%s is on %s\n", a.Namespace, a.Pod, a.Node)
	case a.Message != "":
		fmt.Fprintf(&b, "pod %s/%s has no node: %s\n", a.Namespace, a.Pod, a.Message)
	default:
		fmt.Fprintf(&b, "pod %s/%s has no node yet; it fits on %s\n", a.Namespace, a.Pod, a.Best)
	}
	b.WriteString("\n")
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, "NODE\tSCORE\tWHY")
	for _, n := range slices.SortedFunc(slices.Values(a.Nodes), func(x, y Node) int {
		return cmp.Or(cmp.Compare(y.Score, x.Score), strings.Compare(x.Name, y.Name))
	}) {
		_, _ = fmt.Fprintln(w, n.line())
	}
	_ = w.Flush()
	if len(a.Cures) > 0 {
		b.WriteString("\nAny of these alone would help:\n")
		for _, cure := range a.Cures {
			b.WriteString("- " + cure + "\n")
		}
	} else if a.Node == "" && a.Best == "" {
		b.WriteString("\nNo single change of the pod would help that was tried: its requests, tolerations, selector, affinity, spread, host ports.\n")
	}
	return b.String()
}

func (n *Node) line() string {
	if n.Filter != "" {
		text := fmt.Sprintf("%s\t-\t%s: %s", n.Name, n.Filter, strings.Join(n.Reasons, ", "))
		if n.Evicting {
			text += " (evicting pods of lower priority could help)"
		}
		return text
	}
	parts := make([]string, 0, len(n.Scores))
	for _, s := range n.Scores {
		parts = append(parts, fmt.Sprintf("%s %d×%d", s.Plugin, s.Value, s.Weight))
	}
	return fmt.Sprintf("%s\t%d\t%s", n.Name, n.Score, strings.Join(parts, ", "))
}

// Warnings say what the answer does not know.
func (a *Answer) Warnings() []string { return missingWarning(a.Missing) }
