package cli

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gantry.dev/gantry/internal/platform/deploy"
)

// events is a deploy that takes its time.
func playEvents(sink func(deploy.Event)) {
	now := time.Now
	sink(deploy.Event{Time: now(), Type: deploy.EventStep, Step: "build", Text: "compiling " + strings.Repeat("x", 100)})
	time.Sleep(3500 * time.Millisecond)
	sink(deploy.Event{Time: now(), Type: deploy.EventLog, Text: "a line of the build"})
	sink(deploy.Event{Time: now(), Type: deploy.EventWarning, Text: "careful"})
	sink(deploy.Event{Time: now(), Type: deploy.EventDone, Step: "build", Text: "compiled"})
	sink(deploy.Event{Time: now(), Type: deploy.EventRelease, Text: "v1 starts"})
	sink(deploy.Event{Time: now(), Type: deploy.EventRelease, Text: "v1 starts"})
}

func TestProgressOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{env: Env{Stderr: &out, IsTerminal: true}}
		sink, end := a.show(false)
		playEvents(sink)
		end()
		text := out.String()
		for drawn := range strings.SplitSeq(strings.ReplaceAll(text, "\n", "\r"), "\r") {
			if n := len([]rune(strings.TrimSuffix(drawn, "\x1b[K"))); n > 79 {
				t.Errorf("a line of %d: %q", n, drawn)
			}
		}
		for _, want := range []string{"…" + " (2s)\x1b[K", " (3s)\x1b[K", "  | a line of the build\n\r… compiling", "! careful\n\r…", "✓ compiled (3.5s)\n", "… v1 starts\x1b[K"} {
			if !strings.Contains(text, want) {
				t.Errorf("want %q in %q", want, text)
			}
		}
		if !strings.HasSuffix(text, "\r\x1b[K") {
			t.Errorf("something is left of the line: %q", text[len(text)-20:])
		}
	})
}

func TestProgressInAPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{env: Env{Stderr: &out}}
		sink, end := a.show(false)
		playEvents(sink)
		end()
		const want = "- compiling " + "\n  | a line of the build\n! careful\n✓ compiled (3.5s)\n- v1 starts\n"
		if got := strings.ReplaceAll(out.String(), strings.Repeat("x", 100), ""); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
