package robustness

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// state is what the model knows of one key. A revision of 0 is one that no client was told.
type state struct {
	there bool
	value string
	rv    int64
}

func (s state) has(rv int64) bool { return s.there && (s.rv == rv || s.rv == 0) }

// keyModel is one object with optimistic concurrency, as the Kubernetes API promises it.
func keyModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(before, input, _ any) (bool, any) {
			return step(before.(state), input.(Op)) //nolint:forcetypeassert // by Init and by operations
		},
		DescribeOperation: func(input, _ any) string {
			op := input.(Op) //nolint:forcetypeassert // by operations
			return fmt.Sprintf("client %d at server %d: %s %s %q if %d: %s %q %d", op.Client, op.Server, op.Verb, op.Key, op.Value, op.RV, op.Outcome, op.GotValue, op.GotRV)
		},
	}
}

// step says whether an answer is right in a state, and what the state is after it.
func step(s state, op Op) (bool, state) {
	holds := false // the write's condition
	after := s
	switch op.Verb {
	case Get:
		switch {
		case op.Outcome == Missing:
			return !s.there, s
		case !s.there || s.value != op.GotValue || !s.has(op.GotRV):
			return false, s
		}
		s.rv = op.GotRV
		return true, s
	case Create:
		holds, after = !s.there, state{there: true, value: op.Value, rv: op.GotRV}
	case Update:
		holds, after = s.there && (op.RV == 0 || s.has(op.RV)), state{there: true, value: op.Value, rv: op.GotRV}
	case Delete:
		holds, after = s.has(op.RV), state{}
	}
	switch op.Outcome {
	case Done:
		return holds, after
	case Exists:
		return op.Verb == Create && s.there, s
	case Missing:
		return op.Verb != Create && !s.there, s
	case Conflict:
		return op.Verb != Create && s.there && (s.rv == 0 || s.rv != op.RV), s
	case Unknown:
		if holds {
			return true, after
		}
		return true, s
	case Refused:
		return true, s
	}
	return false, s
}

// operations are the requests on one key, as porcupine wants them. A write whose answer is unknown may take effect at
// any later time; when a watch saw its value, that is known to have happened, its revision is, and it was at the
// latest then.
func operations(ops []Op, seen map[string]Sighting) []porcupine.Operation {
	var out []porcupine.Operation
	for _, op := range ops {
		if op.Outcome == Refused || op.Verb == Get && op.Outcome == Unknown {
			continue
		}
		if op.Outcome == Unknown {
			op.Return = math.MaxInt64
			if at, ok := seen[op.Value]; ok && op.Verb != Delete {
				op.Outcome, op.GotRV, op.Return = Done, at.RV, max(at.First, op.Call+1)
			}
		}
		out = append(out, porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Call, Return: op.Return})
	}
	return out
}

// Sighting is when the watches first told of a value.
type Sighting struct {
	RV    int64
	First int64 // since the start
}

// Linear is the result of checking all keys.
type Linear struct {
	Keys, Ops int
	Unknown   []string // keys for which the time was not enough
	Broken    []string // what no order of the requests explains
}

// CheckLinear checks each key's history. seen is what the watches told, by value; nil when they cannot be trusted.
func CheckLinear(ops []Op, seen map[string]Sighting, perKey time.Duration) Linear {
	byKey := map[string][]Op{}
	var keys []string
	for _, op := range ops {
		if byKey[op.Key] == nil {
			keys = append(keys, op.Key)
		}
		byKey[op.Key] = append(byKey[op.Key], op)
	}
	slices.Sort(keys)
	out := Linear{Keys: len(keys)}
	model := keyModel()
	for _, key := range keys {
		history := operations(byKey[key], seen)
		out.Ops += len(history)
		switch porcupine.CheckOperationsTimeout(model, history, perKey) {
		case porcupine.Illegal:
			out.Broken = append(out.Broken, explain(key, history))
		case porcupine.Unknown:
			out.Unknown = append(out.Unknown, key)
		}
	}
	return out
}

// explain finds the shortest beginning of a history that is not linearizable: its last answer is the one to look at.
func explain(key string, history []porcupine.Operation) string {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(min(1, max(-1, a.Return-b.Return))) })
	model := keyModel()
	bad := func(n int) bool {
		// What had been called by then may have had effects too: its answers do not count yet.
		part := slices.Clone(history[:n])
		end := part[n-1].Return
		for _, op := range history[n:] {
			if in := op.Input.(Op); op.Call < end && in.Verb != Get { //nolint:forcetypeassert // by operations
				in.Outcome, op.Return = Unknown, math.MaxInt64
				op.Input = in
				part = append(part, op)
			}
		}
		return porcupine.CheckOperationsTimeout(model, part, 5*time.Second) == porcupine.Illegal
	}
	low, high := 1, len(history)
	for low < high {
		if middle := (low + high) / 2; bad(middle) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	text := fmt.Sprintf("%s: the last of these answers cannot be:", key)
	for _, op := range history[max(0, low-12):low] {
		text += fmt.Sprintf("\n    %9.3fs to %9.3fs %s", seconds(op.Call), seconds(op.Return), model.DescribeOperation(op.Input, nil))
	}
	return text
}

func seconds(nanoseconds int64) float64 { return float64(nanoseconds) / 1e9 }
