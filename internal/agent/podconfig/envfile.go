package podconfig

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// EnvFileValue finds a variable in a file of NAME='value' lines, as a fileKeyRef reads it: values
// stand in single quotes and may go over several lines, # starts a comment, and nothing may stand
// between a name and its =. A name that is not there has an empty value.
func EnvFileValue(file io.Reader, key string) (string, error) {
	lines := bufio.NewScanner(file)
	wrong := func(number int, what string) error {
		return fmt.Errorf("invalid environment variable format at line %d: %s", number, what)
	}
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return "", wrong(number, "missing '='")
		case strings.TrimRight(name, " \t") == "":
			return "", wrong(number, "empty variable name")
		case strings.TrimRight(name, " \t") != name:
			return "", wrong(number, "whitespace before '=' is not allowed")
		}
		if strings.TrimLeft(value, " \t") != value { // as in a shell, the value is empty then
			if name == key {
				return "", nil
			}
			continue
		}
		rest, quoted := strings.CutPrefix(value, "'")
		if !quoted {
			return "", wrong(number, "value must be enclosed in single quotes")
		}
		start, text := number, strings.Builder{}
		for {
			before, after, closed := strings.Cut(rest, "'")
			text.WriteString(before)
			if closed {
				if after = strings.TrimLeft(after, " \t"); after != "" && !strings.HasPrefix(after, "#") {
					return "", wrong(number, "unexpected content after closing quote")
				}
				break
			}
			if !lines.Scan() {
				return "", wrong(start, "unclosed single quote")
			}
			number++
			text.WriteByte('\n')
			rest = lines.Text()
		}
		if name == key {
			return text.String(), nil
		}
	}
	return "", lines.Err()
}
