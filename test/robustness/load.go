package robustness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keyPrefix  = "key-"
	counterKey = "counter" // not one of the keys that watches and lists are compared by
	// keysAtOnce are fought about; after keyTime there are new ones, so that no key's history becomes too long to check.
	keysAtOnce = 4
	keyTime    = 10 * time.Second
)

func isKey(name string) bool { return strings.HasPrefix(name, keyPrefix) }

// load is clients that read and write all the time, each with its own pace.
type load struct {
	h     *History
	pace  time.Duration // between two requests of a client
	begun time.Time

	stepped, unsure atomic.Int64 // of the counter
	lastWrite       atomic.Int64 // when one was acknowledged, of h
}

// run has one client a server, one that goes to all of them, and two for the counter, until ctx ends.
func (l *load) run(ctx context.Context, seed uint64, servers []*api) {
	l.begun = time.Now()
	var clients sync.WaitGroup
	for i := range len(servers) + 2 {
		at := servers
		if i < len(servers) {
			at = servers[i : i+1]
		}
		random := rand.New(rand.NewPCG(seed, uint64(100+i))) //nolint:gosec // what is asked is no secret
		clients.Go(func() { l.client(ctx, i, random, at) })
	}
	for i := range 2 {
		random := rand.New(rand.NewPCG(seed, uint64(200+i))) //nolint:gosec // as above
		clients.Go(func() { l.count(ctx, random, servers) })
	}
	clients.Wait()
}

// client asks for this and that.
func (l *load) client(ctx context.Context, id int, random *rand.Rand, servers []*api) {
	known := map[string]int64{} // the last revision it was told of, by key
	for ctx.Err() == nil {
		a := servers[random.IntN(len(servers))]
		key := fmt.Sprintf("%s%d-%d", keyPrefix, int(time.Since(l.begun)/keyTime), random.IntN(keysAtOnce))
		if random.IntN(100) < 8 {
			l.list(ctx, id, a, key)
			pauseFor(ctx, l.pace)
			continue
		}
		op := choose(random, key, known[key])
		op.Client = id
		if op.Verb == Create || op.Verb == Update {
			op.Value = l.h.NewValue()
		}
		op = a.do(ctx, l.h, op)
		if ctx.Err() != nil && op.Outcome == Refused {
			return // nobody waited for the answer
		}
		l.h.Add(op)
		switch {
		case op.Outcome == Done && op.Verb == Delete, op.Outcome == Missing:
			delete(known, key)
		case op.Outcome == Done:
			known[key] = op.GotRV
		case op.Outcome == Conflict, op.Outcome == Exists:
			known[key] = -1 // read it first
		}
		if op.Verb != Get && op.Outcome == Done {
			l.lastWrite.Store(op.Return)
		}
		pauseFor(ctx, time.Duration(random.Int64N(2*int64(l.pace))))
	}
}

// choose is the next request of a client that knows a revision of the key, or none (0), or an old one (-1).
func choose(random *rand.Rand, key string, known int64) Op {
	n := random.IntN(100)
	switch {
	case known == -1 || n < 25:
		return Op{Verb: Get, Key: key}
	case known == 0 && n < 85:
		return Op{Verb: Create, Key: key}
	case known == 0:
		return Op{Verb: Update, Key: key}
	case n < 70:
		return Op{Verb: Update, Key: key, RV: known}
	case n < 75:
		return Op{Verb: Update, Key: key}
	case n < 80:
		return Op{Verb: Create, Key: key}
	}
	return Op{Verb: Delete, Key: key, RV: known}
}

// list reads all keys, and says so of those that are fought about now.
func (l *load) list(ctx context.Context, id int, a *api, key string) {
	got, outcome, message := a.list(ctx, l.h)
	got.Client = id
	if outcome == Done {
		l.h.AddList(got)
	} else if ctx.Err() != nil {
		return
	}
	for i := range keysAtOnce {
		op := Op{
			Client: id, Server: a.server, Verb: Get, Key: key[:strings.LastIndex(key, "-")+1] + strconv.Itoa(i), Call: got.Call, Return: got.Return,
			Outcome: outcome, Message: message,
		}
		if item, ok := got.Items[op.Key]; ok {
			op.GotValue, op.GotRV = item.Value, item.RV
		} else if outcome == Done {
			op.Outcome = Missing
		}
		if outcome == Done || i == 0 {
			l.h.Add(op)
		}
	}
}

// count adds one to the counter all the time.
func (l *load) count(ctx context.Context, random *rand.Rand, servers []*api) {
	for ctx.Err() == nil {
		a := servers[random.IntN(len(servers))]
		got, outcome, _ := a.request(ctx, "GET", a.maps()+"/"+counterKey, nil, false)
		if outcome == Done {
			n, err := strconv.Atoi(got.Data[valueKey])
			if err != nil {
				n = -1 << 30 // the check at the end says so
			}
			_, outcome, _ = a.request(ctx, "PUT", a.maps()+"/"+counterKey, configMap(counterKey, strconv.Itoa(n+1), got.Metadata.revision()), true)
			switch outcome {
			case Done:
				l.stepped.Add(1)
			case Unknown:
				l.unsure.Add(1)
			case Conflict, Missing, Exists, Refused:
			}
		}
		pauseFor(ctx, time.Duration(random.Int64N(4*int64(l.pace))))
	}
}
