package api

import "sync"

// limiter bounds how many requests are served at once, and how many of them one user may have, so that a user who
// sends too many cannot shut out the others.
type limiter struct {
	total, perUser int // constant

	mu     sync.Mutex // guards the fields below
	active int
	users  map[string]int
}

func newLimiter(total int) *limiter {
	return &limiter{total: total, perUser: max(1, total*3/4), users: map[string]int{}}
}

// acquire takes a place for user; false if there is none.
func (l *limiter) acquire(user string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active >= l.total || l.users[user] >= l.perUser {
		return false
	}
	l.active++
	l.users[user]++
	return true
}

// release gives the place back.
func (l *limiter) release(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	if l.users[user]--; l.users[user] == 0 {
		delete(l.users, user)
	}
}
