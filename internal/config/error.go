package config

import "strings"

// Error is one wrong setting.
type Error struct {
	Where   string // "--listen", "GANTRY_LISTEN", "/etc/gantry.yaml:3"
	Problem string // what is wrong
	Want    string // what would be right
}

// Error says where, what, and what would be right, in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Where)
	b.WriteString(": ")
	b.WriteString(e.Problem)
	if e.Want != "" {
		b.WriteString("; ")
		b.WriteString(e.Want)
	}
	return b.String()
}
