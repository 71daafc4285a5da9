package robustness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// chaos makes the faults of a schedule.
type chaos struct {
	*cluster
	h       *History
	servers []*api // of its own
	say     func(format string, args ...any)
	limit   time.Duration // for the cluster to be well again
}

// hurt makes a fault, waits until it is over and the cluster well again. The error says that it did not become well.
func (c *chaos) hurt(ctx context.Context, f Fault) (Happened, error) {
	done := Happened{Fault: f, Begin: c.h.Now()}
	if f.Kind == KillLeader || f.Kind == PauseLeader || f.Kind == CutLeader || f.Kind == DeafLeader {
		leader, err := c.leader(ctx, c.servers)
		if err != nil {
			return done, err
		}
		f.Machine = leader
		f.Other = (leader + 1) % c.cluster.servers
	}
	done.Fault, done.Begin, done.Machines = f, c.h.Now(), []int{f.Machine}
	err := c.cause(ctx, f, &done)
	done.End = c.h.Now()
	if err == nil {
		err = c.wellAgain(ctx)
	}
	done.Recovered = c.h.Now()
	c.say("%7.1fs  %-28s %v for %.1fs, well again after %.1fs %s", seconds(done.Begin), f.Kind, done.Machines, seconds(done.End-done.Begin),
		seconds(done.Recovered-done.End), done.Note)
	return done, err
}

// cause does what the fault says and undoes it.
func (c *chaos) cause(ctx context.Context, f Fault, done *Happened) error {
	m := c.all[f.Machine]
	switch f.Kind {
	case KillServer, KillLeader:
		m.signal(syscall.SIGKILL)
		pauseFor(ctx, f.For)
		return m.start()
	case PowerCut:
		m.powerCut()
		pauseFor(ctx, f.For)
		return m.start()
	case KillAll:
		return c.killAll(ctx, f, done)
	case PauseServer, PauseLeader:
		m.signal(syscall.SIGSTOP)
		pauseFor(ctx, f.For)
		m.signal(syscall.SIGCONT)
	case CutServer, CutLeader:
		c.link.Cut(c.t, f.Machine)
		pauseFor(ctx, f.For)
		c.link.Mend(c.t, f.Machine)
	case CutOneWay:
		c.link.CutTo(c.t, f.Machine, f.Other)
		pauseFor(ctx, f.For)
		c.link.MendTo(c.t, f.Machine, f.Other)
	case DeafLeader:
		c.deafen(ctx, f)
	case DiskStalled:
		err := m.disk.freeze(true)
		pauseFor(ctx, f.For)
		return errors.Join(err, m.disk.freeze(false))
	case DiskSlow:
		return m.disk.slow(f.For)
	case DiskTight:
		return c.fill(ctx, f, tightBytes, done)
	case DiskFull:
		return c.fill(ctx, f, 0, done)
	case MemberLost:
		return c.lose(ctx, f)
	case Ballast:
		done.Machines = nil
		return c.ballast(ctx)
	case KillAgent:
		done.Machines = nil
		worker := c.all[c.cluster.servers+f.Machine]
		worker.signal(syscall.SIGKILL)
		pauseFor(ctx, f.For)
		return worker.start()
	case PauseAgent:
		done.Machines = nil
		worker := c.all[c.cluster.servers+f.Machine]
		worker.signal(syscall.SIGSTOP)
		pauseFor(ctx, f.For)
		worker.signal(syscall.SIGCONT)
	}
	return nil
}

// killAll takes the power of all servers at once: only what their disks have is left.
func (c *chaos) killAll(ctx context.Context, f Fault, done *Happened) error {
	done.Machines = nil
	for i := range c.cluster.servers {
		done.Machines = append(done.Machines, i)
		go c.all[i].signal(syscall.SIGKILL)
	}
	for i := range c.cluster.servers {
		c.all[i].powerCut()
	}
	pauseFor(ctx, f.For)
	var err error
	for i := range c.cluster.servers {
		err = errors.Join(err, c.all[i].start())
	}
	return err
}

// deafen drops what the others send to the leader; what it sends still arrives.
func (c *chaos) deafen(ctx context.Context, f Fault) {
	for i := range c.cluster.servers {
		if i != f.Machine {
			c.link.CutTo(c.t, i, f.Machine)
		}
	}
	pauseFor(ctx, f.For)
	for i := range c.cluster.servers {
		if i != f.Machine {
			c.link.MendTo(c.t, i, f.Machine)
		}
	}
}

// fill fills a disk. A server that ends because of it is started again when there is room.
func (c *chaos) fill(ctx context.Context, f Fault, leave int64, done *Happened) error {
	m := c.all[f.Machine]
	err := m.disk.fill(leave)
	pauseFor(ctx, f.For)
	err = errors.Join(err, m.disk.empty())
	pauseFor(ctx, 200*time.Millisecond)
	if !m.running() {
		done.Note = "the server ended"
	}
	return errors.Join(err, m.start())
}

// lose takes a server with its disk away for good; an empty machine takes its place.
func (c *chaos) lose(ctx context.Context, f Fault) error {
	m, by := c.all[f.Machine], c.all[f.Other]
	m.powerCut()
	pauseFor(ctx, f.For)
	if err := await(ctx, 30*time.Second, func() error {
		_, err := by.gantry(15*time.Second, "", "kubectl", "delete", "--raw", "/gantry/v1/servers/"+m.name)
		return err
	}); err != nil {
		return fmt.Errorf("take out the lost member: %w", err)
	}
	if err := await(ctx, 30*time.Second, func() error {
		_, err := by.gantry(15*time.Second, "", "kubectl", "delete", "node", m.name, "--ignore-not-found")
		return err
	}); err != nil {
		return err
	}
	if _, err := m.gantry(time.Minute, "", "down", "--purge", "--yes"); err != nil {
		return err
	}
	err := m.disk.remove()
	if err != nil {
		return err
	}
	if m.disk, err = newDisk(m.disk.image, m.disk.at); err != nil {
		return err
	}
	return c.join(ctx, f.Other, f.Machine)
}

// ballast writes large objects and removes them, so that there is something to compact and to defragment.
func (c *chaos) ballast(ctx context.Context) error {
	const objects, size = 24, 900 << 10
	value := strings.Repeat("ballast ", size/8)
	for _, remove := range []bool{false, true} {
		for i := range objects {
			a := c.servers[i%len(c.servers)]
			name := fmt.Sprintf("ballast-%d", i)
			if remove {
				a.request(ctx, "DELETE", a.maps()+"/"+name, nil, true)
			} else {
				a.request(ctx, "POST", a.maps(), configMap(name, value, 0), true)
			}
		}
	}
	return nil
}

// wellAgain waits until every server is ready, and takes a write that the others can read.
func (c *chaos) wellAgain(ctx context.Context) error {
	for i, a := range c.servers {
		name := fmt.Sprintf("well-%d", i)
		err := await(ctx, c.limit, func() error {
			if m := c.all[i]; !m.running() {
				return fmt.Errorf("%s ended by itself: %s", m.name, m.logEnd(5))
			}
			if outcome, message := a.ready(ctx); outcome != Done {
				return fmt.Errorf("server %d is not ready: %s", i, message)
			}
			value := c.h.NewValue()
			_, outcome, message := a.request(ctx, "PUT", a.maps()+"/"+name, configMap(name, value, 0), true)
			if outcome == Missing {
				_, outcome, message = a.request(ctx, "POST", a.maps(), configMap(name, value, 0), true)
			}
			if outcome != Done {
				return fmt.Errorf("server %d takes no write: %s", i, message)
			}
			for _, other := range c.servers {
				if got, outcome, message := other.request(ctx, "GET", other.maps()+"/"+name, nil, false); outcome != Done || got.Data[valueKey] != value {
					return fmt.Errorf("server %d does not give what server %d took: %s %v", other.server, i, message, got.Data)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("not well again: %w", err)
		}
	}
	return nil
}
