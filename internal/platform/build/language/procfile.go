package language

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// MaxProcessName bounds the name of a process.
const MaxProcessName = 20

var processName = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// ParseProcfile reads the processes of a Procfile, by name. The process release is what runs before a release.
func ParseProcfile(text []byte) (map[string]string, error) {
	out := map[string]string{}
	var problems []error
	number := 0
	problem := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("Procfile:%d:1: %s", number, fmt.Sprintf(format, args...)))
	}
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		process, command, found := strings.Cut(line, ":")
		process, command = strings.TrimSpace(process), strings.TrimSpace(command)
		_, twice := out[process]
		switch {
		case !found || command == "":
			problem("should be \"NAME: COMMAND\"")
		case !processName.MatchString(process):
			problem("%q is not a name of lower-case letters, digits and dashes that begins with a letter", process)
		case len(process) > MaxProcessName:
			problem("%q has %d letters, more than %d", process, len(process), MaxProcessName)
		case twice:
			problem("%s is here twice", process)
		default:
			out[process] = command
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("the Procfile names no process")
	}
	return out, nil
}
