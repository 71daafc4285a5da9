//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxOperations bounds one round, whatever the time: a system may not grow without end.
const maxOperations = 60_000

// operation is one request of a worker; i counts its worker's requests from 0.
type operation func(ctx context.Context, worker, i int) error

// load is how much to do in one round.
type load struct {
	workers int
	length  time.Duration
	max     int // requests of all workers together
}

// outcome is one measured round.
type outcome struct {
	rate      float64 // requests a second
	cpu       float64 // microseconds of the servers' CPU time a request
	p50, p99  float64 // milliseconds
	others    float64 // percent of one CPU that neither the system nor this process used
	count     int
	serverCPU time.Duration
	elapsed   time.Duration
}

// drive runs op with all workers until the time or the number of requests is over. The first error of
// any worker ends the round and is returned: a failed request must not pass for a quick one.
func drive(ctx context.Context, l load, op operation) ([]time.Duration, time.Duration, error) {
	timed, cancel := context.WithTimeout(ctx, l.length)
	defer cancel()
	var (
		wait    sync.WaitGroup
		budget  atomic.Int64
		took    = make([][]time.Duration, l.workers)
		failed  = make(chan error, l.workers)
		started = time.Now()
	)
	budget.Store(int64(l.max))
	for worker := range l.workers {
		wait.Go(func() {
			for i := 0; timed.Err() == nil && budget.Add(-1) >= 0; i++ {
				begun := time.Now()
				if err := op(ctx, worker, i); err != nil {
					failed <- err
					cancel()
					return
				}
				took[worker] = append(took[worker], time.Since(begun))
			}
		})
	}
	wait.Wait()
	elapsed := time.Since(started)
	close(failed)
	if err := <-failed; err != nil {
		return nil, 0, err
	}
	var all []time.Duration
	for _, one := range took {
		all = append(all, one...)
	}
	return all, elapsed, ctx.Err()
}

// measure drives op and accounts for the CPU time that passed on the machine.
func measure(ctx context.Context, s *system, l load, op operation) (outcome, error) {
	before, err := account(s)
	if err != nil {
		return outcome{}, err
	}
	took, elapsed, err := drive(ctx, l, op)
	if err != nil {
		return outcome{}, err
	}
	after, err := account(s)
	if err != nil {
		return outcome{}, err
	}
	if len(took) == 0 {
		return outcome{}, errors.New("no request ended within the round")
	}
	return after.since(before, took, elapsed), nil
}

// usage is the CPU time used so far by the system, by this process and by all.
type usage struct {
	server, self, machine time.Duration
}

func account(s *system) (usage, error) {
	server, err := s.cpu()
	if err != nil {
		return usage{}, err
	}
	self, err := cpuOf([]int{os.Getpid()})
	if err != nil {
		return usage{}, err
	}
	all, err := machineCPU()
	if err != nil {
		return usage{}, err
	}
	return usage{server, self, all}, nil
}

func (u usage) since(before usage, took []time.Duration, elapsed time.Duration) outcome {
	count := len(took)
	latencies := milliseconds(took)
	server := u.server - before.server
	others := max(0, u.machine-before.machine-server-(u.self-before.self))
	return outcome{
		rate:      float64(count) / elapsed.Seconds(),
		cpu:       float64(server.Microseconds()) / float64(count),
		p50:       quantile(latencies, 0.5),
		p99:       quantile(latencies, 0.99),
		others:    100 * others.Seconds() / elapsed.Seconds(),
		count:     count,
		serverCPU: server,
		elapsed:   elapsed,
	}
}

// fill runs op for each number below count, with all workers, and no clock.
func fill(ctx context.Context, workers, count int, op func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wait   sync.WaitGroup
		next   atomic.Int64
		failed = make(chan error, workers)
	)
	for range workers {
		wait.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				if err := op(ctx, i); err != nil {
					failed <- fmt.Errorf("object %d: %w", i, err)
					cancel()
					return
				}
			}
		})
	}
	wait.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	return ctx.Err()
}
