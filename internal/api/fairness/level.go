package fairness

import (
	"hash/fnv"
	"math"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/util/shufflesharding"
)

// level is a priority level. All but the constants is guarded by the dispatcher's mutex; a level lives on when its
// configuration changes.
type level struct {
	name string
	uid  []string // of the PriorityLevelConfiguration, as a header's value

	exempt    bool // never changes
	rejects   bool // instead of queueing
	shares    int32
	lendable  int32 // percent of the seats
	borrowing int32 // percent of the seats that may come from others; -1 is no limit
	nominal   int   // seats of its own
	kept      int   // of those that are not lent
	most      int   // seats with all that it may borrow
	dealer    *shufflesharding.Dealer
	maxQueue  int // requests that wait in one queue
	hand      int
	deck      int

	executing int // seats taken
	waiting   int // requests in all queues
	queues    []queue
	virtual   float64 // service that the queue dispatched last had had
	usual     float64 // seconds that a request of this level takes, a moving average
}

// queue is where the requests of some flows wait, first come first served.
type queue struct {
	waiters []*waiter
	served  float64 // seat-seconds given to it so far, never less than what the level's last had had when it was empty
}

// waiter is a request that waits.
type waiter struct {
	level   *level
	queue   *queue
	width   int
	granted chan struct{} // closed when it has its seats
	done    bool          // granted or given up
	charged float64       // what queue was charged in advance
	began   time.Time     // when it was granted
}

// configure takes over a configuration; seats is how many all levels have together, of all shares.
func (l *level) configure(object *flowcontrolv1.PriorityLevelConfiguration, seats int, all int32) error {
	l.uid = headerValue(string(object.UID))
	if l.exempt {
		return nil
	}
	limited := object.Spec.Limited
	l.shares, l.lendable, l.borrowing = sharesOf(object), 0, -1
	if limited.LendablePercent != nil {
		l.lendable = *limited.LendablePercent
	}
	if limited.BorrowingLimitPercent != nil {
		l.borrowing = *limited.BorrowingLimitPercent
	}
	l.nominal = int(math.Ceil(float64(seats) * float64(l.shares) / float64(max(all, 1))))
	l.kept = l.nominal - int(math.Round(float64(l.nominal)*float64(l.lendable)/100))
	l.most = math.MaxInt
	if l.borrowing >= 0 {
		l.most = l.nominal + int(math.Round(float64(l.nominal)*float64(l.borrowing)/100))
	}
	l.rejects = limited.LimitResponse.Type != flowcontrolv1.LimitResponseTypeQueue || limited.LimitResponse.Queuing == nil
	if l.rejects {
		return nil
	}
	queuing := limited.LimitResponse.Queuing
	dealer, err := shufflesharding.NewDealer(int(queuing.Queues), int(queuing.HandSize))
	if err != nil {
		return err
	}
	l.dealer, l.maxQueue, l.hand, l.deck = dealer, int(queuing.QueueLengthLimit), int(queuing.HandSize), int(queuing.Queues)
	if l.waiting == 0 { // else those who wait go first; the number of queues changes when none does
		l.queues = nil
	}
	return nil
}

// defaultShares is what a level has that names no shares (the API's default).
const defaultShares = 30

// sharesOf is how large the level's part of all seats is.
func sharesOf(object *flowcontrolv1.PriorityLevelConfiguration) int32 {
	if limited := object.Spec.Limited; limited != nil {
		if limited.NominalConcurrencyShares != nil {
			return *limited.NominalConcurrencyShares
		}
		return defaultShares
	}
	return 0
}

// widest bounds how many seats one request may take: it must not be most of the level.
func (l *level) widest(width int) int {
	return max(1, min(width, l.nominal*15/100))
}

// enqueueLocked puts a request into the shortest queue of its flow's hand; nil if that is full.
func (l *level) enqueueLocked(flow string, width int) *waiter {
	if len(l.queues) != l.deck && l.waiting == 0 {
		l.queues = make([]queue, l.deck)
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(flow)) // a hash takes everything
	hand := make([]int, 0, l.hand)
	hand = l.dealer.DealIntoHand(hash.Sum64(), hand)
	var best *queue
	for _, at := range hand {
		if q := &l.queues[at%len(l.queues)]; best == nil || len(q.waiters) < len(best.waiters) {
			best = q
		}
	}
	if len(best.waiters) >= l.maxQueue {
		return nil
	}
	if len(best.waiters) == 0 {
		best.served = max(best.served, l.virtual)
	}
	w := &waiter{level: l, queue: best, width: width, granted: make(chan struct{})}
	best.waiters = append(best.waiters, w)
	l.waiting++
	return w
}

// nextLocked is who has to go first: the head of the queue that has been served least. Nil if nobody waits.
func (l *level) nextLocked() *waiter {
	var best *queue
	for i := range l.queues {
		if q := &l.queues[i]; len(q.waiters) > 0 && (best == nil || q.served < best.served) {
			best = q
		}
	}
	if best == nil {
		return nil
	}
	return best.waiters[0]
}

// grantLocked gives the head of its queue its seats. What it will take is charged in advance, as long as requests of
// the level usually take, so that a queue does not win again and again before its requests end.
func (l *level) grantLocked(w *waiter, now time.Time) {
	q := w.queue
	l.virtual = max(l.virtual, q.served)
	q.waiters[0] = nil
	q.waiters = q.waiters[1:]
	if len(q.waiters) == 0 {
		q.waiters = nil
	}
	l.waiting--
	l.executing += w.width
	w.charged = float64(w.width) * max(l.usual, leastService)
	q.served += w.charged
	w.done, w.began = true, now
	close(w.granted)
}

// leastService is what a request counts at least, in seconds: a queue of very quick ones must not win for ever.
const leastService = 100e-6

// giveUpLocked takes a request out of its queue.
func (l *level) giveUpLocked(w *waiter) {
	for i, other := range w.queue.waiters {
		if other == w {
			w.queue.waiters = append(w.queue.waiters[:i], w.queue.waiters[i+1:]...)
			l.waiting--
			break
		}
	}
	w.done = true
}

// settleLocked corrects what was charged in advance.
func (l *level) settleLocked(w *waiter, now time.Time) {
	took := max(now.Sub(w.began).Seconds(), leastService)
	l.usual += (took - l.usual) / 16
	w.queue.served += float64(w.width)*took - w.charged
}
