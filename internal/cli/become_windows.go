package cli

import (
	"errors"
	"os/exec"
)

// become runs another program in this one's place and ends with its exit code.
func (a *app) become(program string, args, environ []string) error {
	cmd := exec.Command(program, args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, a.env.Stdin, a.env.Stdout, a.env.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return withCode(exit.ExitCode(), err)
	}
	return err
}
