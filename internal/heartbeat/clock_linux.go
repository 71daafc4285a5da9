package heartbeat

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// urgency is the nice value of the threads that send beats.
const urgency = -10

// BootClock is the time since the machine's boot. Unlike Go's clock it goes on while the machine sleeps, and all
// processes of the machine read the same, so a deadline in it means the same to an agent and to its shims.
func BootClock() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // every deadline counts from the boot then: fenced pods do not start rather than run on
	}
	return time.Duration(now.Nano())
}

// keepThread gives the caller's goroutine a thread of its own that the kernel prefers to others, where it may. The
// thread ends with the goroutine: its priority must not come upon another.
func keepThread() (end func()) {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), urgency) // without the right to it beats are sent as well
	return func() {}                                                // not unlocked: the runtime ends the thread
}
