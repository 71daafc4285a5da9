package nodeapi

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// exposition is a page in the text format of Prometheus: families in the order in which they are
// first named, each with its samples together.
type exposition struct {
	order    []string
	families map[string]*bytes.Buffer
	escape   *strings.Replacer
}

func newExposition() *exposition {
	return &exposition{families: map[string]*bytes.Buffer{}, escape: strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)}
}

// family returns the page of a family. kind is "counter", "gauge" or "histogram".
func (e *exposition) family(name, kind, help string) *bytes.Buffer {
	out := e.families[name]
	if out == nil {
		out = &bytes.Buffer{}
		e.families[name] = out
		e.order = append(e.order, name)
		out.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
	}
	return out
}

// add writes a sample of a family. labels are names and values in turn; at is zero for now.
func (e *exposition) add(name, kind, help string, value float64, at time.Time, labels ...string) {
	e.sample(e.family(name, kind, help), name, value, at, labels...)
}

func (e *exposition) sample(out *bytes.Buffer, name string, value float64, at time.Time, labels ...string) {
	out.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		out.WriteByte(separator)
		out.WriteString(labels[i] + `="`)
		_, _ = e.escape.WriteString(out, labels[i+1])
		out.WriteByte('"')
	}
	if len(labels) > 0 {
		out.WriteByte('}')
	}
	out.WriteByte(' ')
	out.Write(strconv.AppendFloat(out.AvailableBuffer(), value, 'g', -1, 64))
	if !at.IsZero() {
		out.WriteByte(' ')
		out.Write(strconv.AppendInt(out.AvailableBuffer(), at.UnixMilli(), 10))
	}
	out.WriteByte('\n')
}

func (e *exposition) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, name := range e.order {
		_, _ = w.Write(e.families[name].Bytes())
	}
}
