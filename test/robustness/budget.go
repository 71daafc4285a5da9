package robustness

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Happened is a fault that was made.
type Happened struct {
	Fault
	Machines  []int // that were hurt
	Begin     int64 // since the start
	End       int64 // when the cause was gone
	Recovered int64 // when all servers were ready and took writes
	Note      string
}

// Row is what the faults of one kind cost.
type Row struct {
	Kind     Kind
	Times    int
	Requests int
	Hurt     int           // failed requests to the machines that were hurt
	Others   int           // failed requests to other machines
	NoWrite  time.Duration // the longest time in which no write was acknowledged
	Recovery time.Duration // the longest from the end of the cause until all was well
}

// Budget adds up what each kind of fault cost, in order of appearance; the last row is everything else.
func Budget(faults []Happened, ops []Op) []Row {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b Op) int { return int(min(1, max(-1, a.Call-b.Call))) })
	var rows []Row
	row := func(kind Kind) *Row {
		i := slices.IndexFunc(rows, func(r Row) bool { return r.Kind == kind })
		if i < 0 {
			i = len(rows)
			rows = append(rows, Row{Kind: kind})
		}
		return &rows[i]
	}
	in := make([]int, len(ops)) // which fault a request was called in, from 1
	for n, f := range faults {
		r := row(f.Kind)
		r.Times++
		r.Recovery = max(r.Recovery, time.Duration(f.Recovered-f.End))
		r.NoWrite = max(r.NoWrite, quiet(ops, f.Begin, f.Recovered))
		for i, op := range ops {
			if op.Call >= f.Begin && op.Call <= f.Recovered {
				in[i] = n + 1
			}
		}
	}
	calm := Row{Kind: "none"}
	for i, op := range ops {
		r := &calm
		if in[i] > 0 {
			r = row(faults[in[i]-1].Kind)
		}
		r.Requests++
		switch {
		case op.Outcome != Refused && op.Outcome != Unknown:
		case in[i] > 0 && slices.Contains(faults[in[i]-1].Machines, op.Server):
			r.Hurt++
		default:
			r.Others++
		}
	}
	return append(rows, calm)
}

// quiet is the longest time between two acknowledged writes around a fault.
func quiet(ops []Op, begin, end int64) time.Duration {
	var returns []int64
	for _, op := range ops {
		if op.Verb != Get && op.Outcome == Done {
			returns = append(returns, op.Return)
		}
	}
	slices.Sort(returns)
	var longest int64
	for i := 1; i < len(returns); i++ {
		if returns[i] >= begin && returns[i-1] <= end {
			longest = max(longest, returns[i]-returns[i-1])
		}
	}
	return time.Duration(longest)
}

// Table is the rows as text.
func Table(rows []Row) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "fault\ttimes\trequests\tfailed there\tfailed elsewhere\tno write for\twell again after\t")
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%.1fs\t%.1fs\t\n", r.Kind, r.Times, r.Requests, r.Hurt, r.Others, r.NoWrite.Seconds(), r.Recovery.Seconds())
	}
	_ = w.Flush() // of a strings.Builder
	return text.String()
}
