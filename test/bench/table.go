package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// bound says what a target limits.
type bound string

const (
	noTarget   bound = ""
	ratioLeast bound = "ratio ≥" // Gantry divided by upstream
	ratioMost  bound = "ratio ≤"
	valueLeast bound = "≥" // Gantry's own figure
	valueMost  bound = "≤"
)

// target is what a figure must reach.
type target struct {
	Bound bound   `json:"bound"`
	Value float64 `json:"value"`
	Text  string  `json:"text"` // Value as people write it, such as 1/6; default: Value
}

// row is one figure of both systems. An empty series was not measured.
type row struct {
	Name     string `json:"name"`
	Unit     string `json:"unit"`
	Gantry   series `json:"gantry"`
	Upstream series `json:"upstream,omitempty"`
	Target   target `json:"target"`
}

// ratio is Gantry's median divided by upstream's, NaN when one is missing.
func (r row) ratio() float64 { return r.Gantry.median() / r.Upstream.median() }

// verdict is "yes", "no: 12% off", or empty where there is no target or no figure.
func (r row) verdict() string {
	have := r.Gantry.median()
	if r.Target.Bound == ratioLeast || r.Target.Bound == ratioMost {
		have = r.ratio()
	}
	if r.Target.Bound == noTarget || math.IsNaN(have) {
		return ""
	}
	met := have <= r.Target.Value
	if r.Target.Bound == ratioLeast || r.Target.Bound == valueLeast {
		met = have >= r.Target.Value
	}
	if met {
		return "yes"
	}
	return fmt.Sprintf("no: %.0f%% off", 100*math.Abs(have/r.Target.Value-1))
}

func (t target) String() string {
	if t.Bound == noTarget {
		return ""
	}
	text := t.Text
	if text == "" {
		text = number(t.Value)
	}
	return string(t.Bound) + " " + text
}

// number writes v with three significant digits, or whole when it is large.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// spread writes the median and, of several rounds, the least and the greatest.
func (s series) spread() string {
	if len(s) < 2 {
		return number(s.median())
	}
	return fmt.Sprintf("%s (%s-%s)", number(s.median()), number(slices.Min(s)), number(slices.Max(s)))
}

// writeTable prints rows for a terminal.
func writeTable(w io.Writer, rows []row) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "figure\tunit\tGantry\tupstream\tratio\ttarget\tmet")
	for _, r := range rows {
		_, _ = fmt.Fprintln(table, strings.Join(r.cells(), "\t"))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return nil
}

// cells are the columns of a row: medians, and the rounds' least and greatest in brackets.
func (r row) cells() []string {
	return []string{r.Name, r.Unit, r.Gantry.spread(), r.Upstream.spread(), number(r.ratio()), r.Target.String(), r.verdict()}
}

// report is the file that -json writes.
type report struct {
	Machine  machine            `json:"machine"`
	Settings map[string]string  `json:"settings"`
	Others   map[string]float64 `json:"othersPercent"` // by figure: the most of one CPU that was used by neither the measured system nor the client
	Rows     []row              `json:"rows"`
}

// machine describes where it was measured.
type machine struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func writeJSON(w io.Writer, r report) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}
