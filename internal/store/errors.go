package store

import (
	"errors"
	"fmt"
	"strconv"
)

// Errors that callers branch on. Conflict carries more; see ConflictError.
var (
	// ErrNotFound says that no object has the key.
	ErrNotFound = errors.New("store: no such key")
	// ErrExists says that a create found the key taken.
	ErrExists = errors.New("store: key exists")
	// ErrGone says that the wanted revision is no longer kept: list again.
	ErrGone = errors.New("store: revision is no longer kept")
	// ErrFuture says that the wanted revision has not happened yet.
	ErrFuture = errors.New("store: revision is in the future")
	// ErrSlow ends a watch whose reader did not keep up.
	ErrSlow = errors.New("store: watcher did not keep up")
	// ErrFull says that the database reached its quota; only deletes are taken.
	ErrFull = errors.New("store: database space exceeded")
	// ErrDiskFull says that the disk has too little room left.
	ErrDiskFull = errors.New("store: the disk is full")
	// ErrTimeout says that etcd did not answer in time; the write may have been done.
	ErrTimeout = errors.New("store: etcd did not answer in time")
	// ErrNoLeader says that the members found no leader in time; nothing was done.
	ErrNoLeader = errors.New("store: the members have no leader")
	// ErrBusy says that too much waits to be written already; nothing was done.
	ErrBusy = errors.New("store: too many requests")
	// ErrRemoved says that this store is no member any more.
	ErrRemoved = errors.New("store: this member was removed from the others")
	// ErrNoPeer says that the store was given no address at which other members reach it.
	ErrNoPeer = errors.New("store: no address at which other members reach this one")
	// ErrMember says that there is such a member.
	ErrMember = errors.New("store: is a member already")
	// ErrNoMember says that there is no such member.
	ErrNoMember = errors.New("store: no such member")
	// ErrLast says that the only member cannot be taken away.
	ErrLast = errors.New("store: the only member")
	// ErrQuorum says that a change of the members waits for those that are down.
	ErrQuorum = errors.New("store: too many members are down")
	// ErrJoining says that another member is just joining.
	ErrJoining = errors.New("store: another member is joining")
	// ErrTooLarge says that the object is larger than one request may be.
	ErrTooLarge = errors.New("store: object is too large")
	// ErrSealed says that a value cannot be decrypted with the keys there are.
	ErrSealed = errors.New("store: value cannot be decrypted")
	// ErrReset ends a watch of a kind whose objects are shown another way from now on.
	ErrReset = errors.New("store: the kind changed")
	// ErrNoKind says that there is no such table, or not any more.
	ErrNoKind = errors.New("store: no such kind")
	// ErrClosed says that the store is not running.
	ErrClosed = errors.New("store: not running")
)

// ConflictError says that the object changed since the caller read it.
type ConflictError struct {
	Current *Entry // what is there now; nil when it is gone
}

func (e *ConflictError) Error() string {
	if e.Current == nil {
		return "store: the object is gone"
	}
	return fmt.Sprintf("store: %s is at revision %d", e.Current.Key, e.Current.Rev)
}

func formatRev(rev int64) string { return strconv.FormatInt(rev, 10) }
