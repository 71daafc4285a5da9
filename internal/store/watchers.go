package store

import "slices"

// indexValue is one value of one index.
type indexValue struct{ index, value string }

// watchers are the watches of a table. Those that name a value of an index are only told of changes that concern it,
// so a thousand watches of one node each cost a change no more than one.
type watchers struct {
	all   map[*Watch]struct{} // told of every change
	under map[indexValue]map[*Watch]struct{}
}

func newWatchers() watchers {
	return watchers{all: make(map[*Watch]struct{}), under: make(map[indexValue]map[*Watch]struct{})}
}

func (ws *watchers) add(w *Watch) {
	if w.under == (indexValue{}) {
		ws.all[w] = struct{}{}
		return
	}
	set := ws.under[w.under]
	if set == nil {
		set = make(map[*Watch]struct{})
		ws.under[w.under] = set
	}
	set[w] = struct{}{}
}

func (ws *watchers) remove(w *Watch) {
	delete(ws.all, w)
	if set := ws.under[w.under]; set != nil {
		if delete(set, w); len(set) == 0 {
			delete(ws.under, w.under)
		}
	}
}

// endAll ends every watch and forgets it.
func (ws *watchers) endAll(err error) {
	for w := range ws.all {
		w.end(err)
	}
	for _, set := range ws.under {
		for w := range set {
			w.end(err)
		}
	}
	clear(ws.all)
	clear(ws.under)
}

// offer tells the watches that event may concern, each once.
func (ws *watchers) offer(event Event, indexes map[string]IndexFunc) {
	for w := range ws.all {
		if !w.offer(event) {
			delete(ws.all, w)
		}
	}
	if len(ws.under) == 0 {
		return
	}
	for name, index := range indexes {
		values := index(event.Entry.Object)
		for i, value := range values {
			if !slices.Contains(values[:i], value) {
				ws.offerUnder(event, indexValue{name, value})
			}
		}
		if event.Prev == nil || event.Prev.Object == event.Entry.Object {
			continue
		}
		before := index(event.Prev.Object)
		for i, value := range before {
			if !slices.Contains(values, value) && !slices.Contains(before[:i], value) {
				ws.offerUnder(event, indexValue{name, value})
			}
		}
	}
}

func (ws *watchers) offerUnder(event Event, key indexValue) {
	for w := range ws.under[key] {
		if !w.offer(event) {
			ws.remove(w)
		}
	}
}
