package job

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// unknownIndex is the completion index of a pod that names none.
const unknownIndex = -1

// interval is a run of completion indexes, both ends included.
type interval struct{ first, last int }

// intervals are completion indexes in order: disjoint, and never adjacent.
type intervals []interval

// parseIndexes reads "1,3-5,7"; what cannot be read is left out, and so is what is not below limit.
func parseIndexes(text string, limit int) intervals {
	var out intervals
	for part := range strings.SplitSeq(text, ",") {
		low, high, run := strings.Cut(part, "-")
		first, err := strconv.Atoi(low)
		if err != nil {
			continue
		}
		if first >= limit {
			break
		}
		last := first
		if run {
			high, _, _ = strings.Cut(high, "-")
			if last, err = strconv.Atoi(high); err != nil {
				continue
			}
			last = min(last, limit-1)
		}
		if n := len(out); n > 0 && out[n-1].last == first-1 {
			out[n-1].last = last
		} else {
			out = append(out, interval{first, last})
		}
	}
	return out
}

// String is the form in which a Job's status names indexes.
func (v intervals) String() string {
	var b strings.Builder
	for _, i := range v {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(i.first))
		switch {
		case i.last == i.first+1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(i.last))
		case i.last > i.first:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(i.last))
		}
	}
	return b.String()
}

// total counts the indexes.
func (v intervals) total() int {
	count := 0
	for _, i := range v {
		count += i.last - i.first + 1
	}
	return count
}

func (v intervals) has(index int) bool {
	at, ok := slices.BinarySearchFunc(v, index, func(i interval, index int) int {
		switch {
		case i.last < index:
			return -1
		case i.first > index:
			return 1
		}
		return 0
	})
	return ok && v[at].first <= index
}

// with is v and more, which may be in any order.
func (v intervals) with(more []int) intervals {
	if len(more) == 0 {
		return v
	}
	sorted := slices.Clone(more)
	slices.Sort(sorted)
	other := make(intervals, len(sorted))
	for n, index := range sorted {
		other[n] = interval{index, index}
	}
	return v.union(other)
}

// union is what is in v or in other.
func (v intervals) union(other intervals) intervals {
	out := make(intervals, 0, len(v)+len(other))
	for len(v)+len(other) > 0 {
		var next interval
		if len(other) == 0 || (len(v) > 0 && v[0].first < other[0].first) {
			next, v = v[0], v[1:]
		} else {
			next, other = other[0], other[1:]
		}
		if n := len(out); n > 0 && next.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, next.last)
		} else {
			out = append(out, next)
		}
	}
	return out
}

// common counts the indexes that are in both.
func (v intervals) common(other intervals) int {
	count := 0
	for len(v) > 0 && len(other) > 0 {
		if both := min(v[0].last, other[0].last) - max(v[0].first, other[0].first) + 1; both > 0 {
			count += both
		}
		if v[0].last < other[0].last {
			v = v[1:]
		} else {
			other = other[1:]
		}
	}
	return count
}

// gaps returns the lowest indexes below limit that are not in v, count at most.
func (v intervals) gaps(limit, count int) []int {
	var out []int
	next := 0
	for _, i := range append(slices.Clone(v), interval{limit, limit}) {
		for ; next < min(i.first, limit); next++ {
			if len(out) == count {
				return out
			}
			out = append(out, next)
		}
		next = max(next, i.last+1)
	}
	return out
}

// indexOf is the completion index that a pod's annotation names.
func indexOf(pod *corev1.Pod) int {
	index, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || index < 0 {
		return unknownIndex
	}
	return index
}
