package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

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
	p := &progress{app: a, live: a.draws(), width: a.terminalWidth(), begun: map[string]time.Time{}, ended: make(chan struct{})}
	if p.live {
		p.ticking.Go(p.tick)
	}
	return p.show, p.end
}

// draws tells whether a line on standard error can be drawn again: not where it goes to a file or a pipe.
func (a *app) draws() bool { return a.env.IsTerminal && showsTo(a.env.Stderr) }

// showsTo tells whether a person sees what is written. What is no file is a test's.
func showsTo(w io.Writer) bool {
	out, isFile := w.(*os.File)
	return !isFile || term.IsTerminal(int(out.Fd()))
}

// terminalWidth is how wide the terminal is that progress is shown on.
func (a *app) terminalWidth() int {
	if out, isFile := a.env.Stderr.(*os.File); isFile {
		if width, _, err := term.GetSize(int(out.Fd())); err == nil && width > 20 {
			return width
		}
	}
	return 80
}

// quietFor is how long a step takes before its time is shown, and ticks on.
const quietFor = 2 * time.Second

// progress prints events for people on standard error: a line for each step that is done and, on a terminal, one for
// what is being done, which is drawn again once a second.
type progress struct {
	app   *app
	live  bool // redraw the last line
	width int

	ended   chan struct{}
	ticking sync.WaitGroup

	mu    sync.Mutex // guards the fields below, and the output
	line  string     // that is to be redrawn
	since time.Time  // of its step
	last  string
	begun map[string]time.Time
}

// tick shows that time goes on.
func (p *progress) tick() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-ticker.C:
			p.mu.Lock()
			p.draw(p.line)
			p.mu.Unlock()
		}
	}
}

// end leaves nothing of the line that is redrawn.
func (p *progress) end() {
	close(p.ended)
	p.ticking.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *progress) show(e deploy.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
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
		redraw := p.line
		p.clear()
		p.print("! %s", e.Text)
		p.draw(redraw)
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
	if since, known := p.begun[e.Step]; known {
		p.since = since
	} else {
		p.since = time.Now()
	}
	p.draw("… " + e.Text)
}

// draw writes a line that the next one replaces. It is cut so that it stays one line.
func (p *progress) draw(line string) {
	if line == "" {
		return
	}
	p.line = line
	after := ""
	if passed := time.Since(p.since); passed >= quietFor {
		after = " (" + passed.Truncate(time.Second).String() + ")"
	}
	most := p.width - 1 - len(after)
	if runes := []rune(line); len(runes) > most {
		line = string(runes[:most-1]) + "…"
	}
	_, _ = fmt.Fprintf(p.app.env.Stderr, "\r%s%s\x1b[K", line, after)
}

// clear takes the line away; mu is held.
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
