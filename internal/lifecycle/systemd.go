//go:build linux

package lifecycle

import (
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
)

// States that systemd understands (sd_notify(3)).
const (
	SystemdReady    = daemon.SdNotifyReady
	SystemdStopping = daemon.SdNotifyStopping
)

// NotifySystemd tells systemd a state, when it started this process and asked to be told.
func NotifySystemd(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("tell systemd %q: %w", state, err)
	}
	return nil
}

// SystemdRunning reports whether systemd is this machine's init (sd_booted(3)).
func SystemdRunning() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
