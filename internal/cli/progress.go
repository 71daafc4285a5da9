package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"gantry.dev/gantry/internal/platform/deploy"
)

// show returns a sink for what a deploy tells. Lines of JSON, lines of text, or on a terminal one line that changes.
func (a *app) show(quiet bool) (sink func(deploy.Event), end func()) {
	nothing := func() {}
	if a.json {
		encoder := json.NewEncoder(a.env.Stdout)
		return func(e deploy.Event) { _ = encoder.Encode(e) }, nothing
	}
	if quiet {
		return func(deploy.Event) {}, nothing
	}
	p := &progress{app: a, live: a.env.IsTerminal, begun: map[string]time.Time{}}
	return p.show, p.clear
}

// progress prints events for people on standard error.
type progress struct {
	app   *app
	live  bool   // redraw the last line
	line  string // that is to be redrawn
	last  string
	begun map[string]time.Time
}

func (p *progress) show(e deploy.Event) {
	switch e.Type {
	case deploy.EventStep:
		if _, known := p.begun[e.Step]; !known {
			p.begun[e.Step] = e.Time
		}
		p.current(e)
	case deploy.EventRelease:
		p.current(e)
	case deploy.EventDone:
		p.clear()
		p.print("✓ %s (%s)", e.Text, took(e.Time.Sub(p.begun[e.Step])))
		delete(p.begun, e.Step)
	case deploy.EventWarning:
		p.clear()
		p.print("! %s", e.Text)
	case deploy.EventLog:
		redraw := p.line
		p.clear()
		p.print("  | %s", e.Text)
		p.draw(redraw)
	}
}

// current says what is being done now.
func (p *progress) current(e deploy.Event) {
	if e.Text == p.last {
		return
	}
	p.last = e.Text
	if !p.live {
		p.print("- %s", e.Text)
		return
	}
	p.clear()
	p.draw("… " + e.Text)
}

// draw writes a line that the next one replaces. It is cut so that it stays one line.
func (p *progress) draw(line string) {
	if line == "" {
		return
	}
	const width = 78
	if runes := []rune(line); len(runes) > width {
		line = string(runes[:width-1]) + "…"
	}
	p.line = line
	_, _ = fmt.Fprintf(p.app.env.Stderr, "\r%s", line)
}

func (p *progress) clear() {
	if p.line != "" {
		_, _ = fmt.Fprint(p.app.env.Stderr, "\r\x1b[K")
		p.line = ""
	}
}

func (p *progress) print(format string, args ...any) {
	_, _ = fmt.Fprintf(p.app.env.Stderr, format+"\n", args...)
}

func took(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// finish prints how a deploy ended and returns err.
func (a *app) finish(result deploy.Result, err error) error {
	if failed, ok := errors.AsType[*deploy.Error](err); ok {
		result.Code, result.Reason, result.Message, result.Log, result.Do = failed.Code, failed.Reason, failed.Message, failed.Log, failed.Do
		if failed.Err != nil {
			result.Message = strings.TrimPrefix(result.Message+": "+failed.Err.Error(), ": ")
		}
	} else if err != nil {
		result.Code, result.Message = deploy.Code(codeOf(err)), err.Error()
	}
	if a.json {
		event := deploy.Event{Time: time.Now().UTC(), Type: deploy.EventResult, Result: &result}
		if encodeErr := json.NewEncoder(a.env.Stdout).Encode(event); err == nil && encodeErr != nil {
			return fmt.Errorf("print result: %w", encodeErr)
		}
		return err
	}
	if err != nil {
		return err
	}
	if result.Unchanged {
		return a.printf("%s v%d: nothing changed%s\n", result.App, result.Release, urlsText(result.URLs))
	}
	if result.Release == 0 {
		return a.printf("%s: asked for; see \"gantry status %s\"\n", result.App, result.App)
	}
	return a.printf("%s v%d%s\n", result.App, result.Release, urlsText(result.URLs))
}

func urlsText(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return "\n" + strings.Join(urls, "\n")
}
