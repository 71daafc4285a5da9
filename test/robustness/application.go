package robustness

import (
	"fmt"
	"maps"
	"slices"
)

// rows is what the clients of the CRUD example were told of its rows, by id.
type rows struct {
	titles   map[string]bool // that were sent, and what became of it does not matter
	made     map[int64]string
	doomed   map[int64]bool // somebody asked for their removal; the answer is unknown
	removed  map[int64]bool // acknowledged
	requests int
	failed   int
}

func newRows() *rows {
	return &rows{titles: map[string]bool{}, made: map[int64]string{}, doomed: map[int64]bool{}, removed: map[int64]bool{}}
}

// check holds the rows that are there, by id, against what the clients were told.
func (r *rows) check(there map[int64]string) []string {
	var broken []string
	for _, id := range slices.Sorted(maps.Keys(r.made)) {
		title, found := there[id]
		switch {
		case r.removed[id] && found:
			broken = append(broken, fmt.Sprintf("row %d is there, though its removal was acknowledged", id))
		case r.removed[id], r.doomed[id] && !found:
		case !found:
			broken = append(broken, fmt.Sprintf("lost: row %d %q was acknowledged", id, r.made[id]))
		case title != r.made[id]:
			broken = append(broken, fmt.Sprintf("row %d is %q, acknowledged was %q", id, title, r.made[id]))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(there)) {
		if !r.titles[there[id]] {
			broken = append(broken, fmt.Sprintf("phantom: row %d is %q, which nobody sent", id, there[id]))
		}
	}
	return broken
}
