package deploy

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/gantry/api/v1alpha1"
)

// Code is the exit code that a failure has; the grammar of the command line fixes them.
type Code int

// Exit codes.
const (
	CodeOther       Code = 1
	CodeUsage       Code = 2
	CodeBuild       Code = 3
	CodeCheck       Code = 4 // checks before, or the release command
	CodeUnhealthy   Code = 5
	CodeAborted     Code = 6
	CodeTimeout     Code = 7
	CodeUnreachable Code = 8
	CodeSuperseded  Code = 9
)

// Error is why something was not done, and what to do.
type Error struct {
	Code    Code
	Reason  string // one word, such as those of releases
	Message string
	Log     string   // last lines of what failed
	Do      []string // what to do, as sentences or commands
	Err     error    // cause or nil
}

func (e *Error) Error() string {
	lines := []string{e.Message}
	if e.Err != nil && e.Message == "" {
		lines[0] = e.Err.Error()
	} else if e.Err != nil {
		lines[0] += ": " + e.Err.Error()
	}
	if log := strings.TrimRight(e.Log, "\n"); log != "" {
		for line := range strings.SplitSeq(log, "\n") {
			lines = append(lines, "  | "+line)
		}
	}
	for _, do := range e.Do {
		lines = append(lines, "→ "+do)
	}
	return strings.Join(lines, "\n")
}

func (e *Error) Unwrap() error { return e.Err }

// failure makes an Error.
func failure(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) try(do ...string) *Error {
	e.Do = append(e.Do, do...)
	return e
}

// Reached gives an error of the API the code of what was wrong: nobody answers, or it is not allowed.
func Reached(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	var network net.Error
	var address *url.Error
	switch {
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return &Error{Code: CodeUnreachable, Reason: "Denied", Message: doing, Err: err}
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), errors.As(err, &network), errors.As(err, &address):
		return &Error{Code: CodeUnreachable, Reason: "Unreachable", Message: doing, Err: err}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// releaseFailure is how a release that ended badly is told.
func releaseFailure(release *v1alpha1.Release, serves int64) error {
	status := release.Status
	out := &Error{Code: codeOfReason(status.Phase, status.Reason), Reason: status.Reason, Log: status.Log}
	out.Message = fmt.Sprintf("v%d of %s %s", release.Spec.Number, release.Spec.App, pastOf(status.Phase))
	if status.Message != "" {
		out.Message += ": " + status.Message
	}
	switch {
	case status.Phase == v1alpha1.ReleaseSuperseded:
		out.Do = append(out.Do, "a later deploy goes on: gantry release ls")
	case serves > 0:
		out.Do = append(out.Do, fmt.Sprintf("v%d still serves", serves))
	default:
		out.Do = append(out.Do, "nothing serves yet")
	}
	if status.Phase == v1alpha1.ReleaseFailed {
		out.Do = append(out.Do, fmt.Sprintf("more: gantry why release/%s", release.Name))
	}
	return out
}

func pastOf(phase string) string {
	switch phase {
	case v1alpha1.ReleaseSuperseded:
		return "was superseded"
	case v1alpha1.ReleaseAborted:
		return "was aborted"
	}
	return "failed"
}

// codeOfReason is the exit code of a release that ended badly.
func codeOfReason(phase, reason string) Code {
	switch {
	case phase == v1alpha1.ReleaseSuperseded, reason == v1alpha1.ReasonSuperseded:
		return CodeSuperseded
	case phase == v1alpha1.ReleaseAborted, reason == v1alpha1.ReasonAnalysis, reason == v1alpha1.ReasonAborted:
		return CodeAborted
	case reason == v1alpha1.ReasonCommandFailed, reason == v1alpha1.ReasonSecretMissing:
		return CodeCheck
	}
	return CodeUnhealthy
}
