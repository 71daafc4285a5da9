package appfile

import (
	"errors"
	"fmt"
	"strings"
)

// Procfile reads the processes of a Procfile, by name. The process release is what runs before a release.
func Procfile(name string, text []byte) (map[string]string, error) {
	out := map[string]string{}
	var problems Problems
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		process, command, found := strings.Cut(line, ":")
		process, command = strings.TrimSpace(process), strings.TrimSpace(command)
		if !found || command == "" {
			problems = append(problems, Problem{name, number, 1, "should be \"NAME: COMMAND\""})
			continue
		}
		if _, err := label("", MaxProcessName).scalar.read(process); err != nil {
			problems = append(problems, Problem{name, number, 1, fmt.Sprintf("%q %v", process, err)})
			continue
		}
		if _, twice := out[process]; twice {
			problems = append(problems, Problem{name, number, 1, fmt.Sprintf("%s is here twice", process)})
		}
		out[process] = command
	}
	if err := problems.sorted(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New(name + " names no process")
	}
	return out, nil
}
