package deploy

import "time"

// Kinds of events.
const (
	EventStep    = "step"    // something begins, or its Text changes
	EventDone    = "done"    // the step is done
	EventLog     = "log"     // a line of a build or a command
	EventRelease = "release" // a release is somewhere else than before
	EventWarning = "warning"
	EventResult  = "result" // the last one
)

// Event is something that happened during a deploy. With --json each is a line.
type Event struct {
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	Step    string    `json:"step,omitempty"` // check, upload, compile, build, release
	Text    string    `json:"text,omitempty"`
	Release int64     `json:"release,omitempty"`
	Phase   string    `json:"phase,omitempty"`
	Result  *Result   `json:"result,omitempty"`
}

// Result is how it ended.
type Result struct {
	App     string   `json:"app"`
	Project string   `json:"project"`
	Release int64    `json:"release,omitempty"`
	Phase   string   `json:"phase,omitempty"`
	Image   string   `json:"image,omitempty"`
	URLs    []string `json:"urls,omitempty"`
	// Unchanged says that there was nothing to release.
	Unchanged bool     `json:"unchanged,omitempty"`
	Code      Code     `json:"code"`
	Reason    string   `json:"reason,omitempty"`
	Message   string   `json:"message,omitempty"`
	Log       string   `json:"log,omitempty"`
	Do        []string `json:"do,omitempty"`
}
