package cli

import (
	"errors"
	"fmt"
)

// Exit codes; the grammar of the command line fixes them.
const (
	exitOther       = 1
	exitUsage       = 2
	exitBuild       = 3
	exitUnreachable = 8
)

// exitError gives an error an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usage makes an error for wrong arguments, files or settings.
func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

// codeOf returns the exit code for what a command returned.
func codeOf(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	return exitOther
}
