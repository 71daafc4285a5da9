package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

const (
	// spaceLook is how often the disk and the database file are looked at.
	spaceLook = time.Second
	// freshLook is how old the last look may be when something is written.
	freshLook = 20 * time.Millisecond
	// shrinkBytes is how much must be gained at least for the file to be made smaller, shrinkPart which part of it, while there is
	// room for more. A copy of a database of 1 GB takes some seconds in which nothing is written.
	shrinkBytes = 16 << 20
	shrinkPart  = 2
	// quotaPart of the quota is where history goes early, so that there is something to gain.
	quotaPart = 10
)

// Levels of room on the disk.
const (
	roomEnough = iota
	roomForNodes
	roomForDeletes
	roomForNothing
)

// Trouble says why writes are refused; nil when they are not.
func (s *Store) Trouble() error {
	if level := s.room.Load(); level != roomEnough {
		return fmt.Errorf("%w: less than %d MiB are free where the store lies; remove something, and writes are taken again",
			ErrDiskFull, s.opts.MinFreeBytes>>20)
	}
	if size, quota := s.SizeBytes(); size >= quota {
		return fmt.Errorf("%w: %d of %d MiB; delete objects, and writes are taken again", ErrFull, size>>20, quota>>20)
	}
	return nil
}

// admit refuses writes while the disk is too full. What nodes say of themselves replaces what they said before, so it is taken
// longer: without it they would count as gone.
func (s *Store) admit(ctx context.Context, kind string) error {
	s.lookAgain(ctx)
	switch s.room.Load() {
	case roomEnough:
		return nil
	case roomForNodes:
		if kind == "nodes" || kind == "leases.coordination.k8s.io" {
			return nil
		}
	}
	return ErrDiskFull
}

// admitDelete refuses deletes too when there is next to nothing left: etcd writes before it frees, and ends when it cannot.
func (s *Store) admitDelete(ctx context.Context) error {
	s.lookAgain(ctx)
	if s.room.Load() == roomForNothing {
		return ErrDiskFull
	}
	return nil
}

// lookAgain looks at the disk unless that was done just now: it may fill faster than spaceLoop looks.
func (s *Store) lookAgain(ctx context.Context) {
	now := time.Now().UnixNano()
	if last := s.looked.Load(); now-last > int64(freshLook) && s.looked.CompareAndSwap(last, now) {
		s.lookAtDisk(ctx)
	}
}

// levelOf decides about writes. It is pure: was is the level before, which is left only with some room to spare.
func levelOf(was int32, free, want uint64) int32 {
	spare := uint64(0)
	if was != roomEnough {
		spare = want / 4
	}
	switch {
	case free < want/16:
		return roomForNothing
	case free < want/2:
		return roomForDeletes
	case free < want+spare:
		return roomForNodes
	}
	return roomEnough
}

// worthShrinking decides about the database file. It is pure.
func worthShrinking(size, used, quota int64) bool {
	gain := size - used
	if size > quota-quota/quotaPart {
		return gain > shrinkBytes/4 || gain > quota/quotaPart
	}
	return gain >= shrinkBytes && gain >= size/shrinkPart
}

// spaceLoop watches the disk, and makes the database file smaller when that is worth it and nobody writes.
func (s *Store) spaceLoop(ctx context.Context) error {
	ticker := time.NewTicker(spaceLook)
	defer ticker.Stop()
	var before int64
	for {
		s.lookAtDisk(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := s.applied.Load()
		s.shrink(ctx, now == before, now)
		before = now
	}
}

func (s *Store) lookAtDisk(ctx context.Context) {
	free, err := s.opts.Free(s.opts.Dir)
	if err != nil {
		return // what cannot be known must not stop the cluster
	}
	was := s.room.Load()
	level := levelOf(was, free, uint64(s.opts.MinFreeBytes)) //nolint:gosec // checked in New
	if level == was {
		return
	}
	s.room.Store(level)
	if level == roomEnough {
		s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "the disk has room again: writes are taken")
	} else if was == roomEnough {
		s.opts.Logger.LogAttrs(ctx, slog.LevelError, "the disk is full: the cluster can be read, and deleted from",
			slog.Uint64("freeBytes", free), slog.Int64("wantBytes", s.opts.MinFreeBytes))
	}
}

// shrink makes the database file smaller if it is worth it, on one member at a time. One that leads while there is something to
// do hands over first: all writes would wait for it.
func (s *Store) shrink(ctx context.Context, idle bool, now int64) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	server := s.member.server
	size, used := server.Backend().Size(), server.Backend().SizeInUse()
	tight := size > s.opts.QuotaBytes-s.opts.QuotaBytes/quotaPart
	if tight && now > 1 && now > server.KV().FirstRev() {
		if leading, _ := s.Leading(); leading {
			if err := s.member.compact(ctx, now); err != nil && ctx.Err() == nil {
				s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "compaction", slog.Any("error", err))
			}
		}
	}
	if (!idle && !tight) || !worthShrinking(size, used, s.opts.QuotaBytes) {
		return
	}
	if free, err := s.opts.Free(s.opts.Dir); err != nil || free < uint64(used)+uint64(used)/8 { //nolint:gosec // sizes are positive
		return
	}
	if !s.shape.TryLock() {
		return // somebody reads the file as a whole
	}
	defer s.shape.Unlock()
	release, err := s.takeTurn(ctx)
	if err != nil {
		return // the next look tries again
	}
	defer release()
	if s.company.Load() && !idle {
		if err := s.handOver(ctx); err != nil {
			s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "the database file stays as large as it is", slog.Any("error", err))
			return
		}
	}
	begun := time.Now()
	if err := server.Defragment(); err != nil {
		s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "making the database file smaller", slog.Any("error", err))
		return
	}
	s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "the database file is smaller",
		slog.Int64("fromBytes", size), slog.Int64("toBytes", server.Backend().Size()), slog.Duration("took", time.Since(begun)))
}
