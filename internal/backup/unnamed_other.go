//go:build !linux

package backup

import (
	"errors"
	"os"
)

// unnamed makes no file: only Linux has files without a name.
func unnamed(string) *os.File { return nil }

func link(*os.File, string) error { return errors.ErrUnsupported }
