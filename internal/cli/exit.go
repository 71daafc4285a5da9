package cli

import (
	"errors"
	"fmt"

	"gantry.dev/gantry/internal/platform/deploy"
)

// Exit codes; the grammar of the command line fixes them.
const (
	exitOther       = 1
	exitUsage       = 2
	exitBuild       = 3
	exitTimeout     = 7
	exitUnreachable = 8
	exitRun         = 125 // "run" and "exec" themselves went wrong, not the program
)

// exitError gives an error an exit code of its own. Without an error it is the code of a program that was run, which has said
// itself what was wrong.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
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
	if e, ok := errors.AsType[*deploy.Error](err); ok {
		return int(e.Code)
	}
	return exitOther
}
