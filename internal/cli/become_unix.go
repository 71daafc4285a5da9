//go:build unix

package cli

import (
	"fmt"
	"syscall"
)

// become replaces this process by another program.
func (a *app) become(program string, args, environ []string) error {
	if err := syscall.Exec(program, args, environ); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}
