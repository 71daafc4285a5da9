package gateway

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strings"
)

// answer is an error that the gateway itself gives to a client.
type answer struct {
	status     int
	reason     string // of the failure, for logs
	text       string // for people; tells nothing of what is inside
	retryAfter int    // seconds; 0: not said
	detail     string // for logs
}

// Error lets an answer travel as an error.
func (a *answer) Error() string { return cmp.Or(a.detail, a.text) }

// answerFor returns the answer to a reason.
func answerFor(reason, detail string) *answer {
	a := &answer{status: http.StatusBadGateway, reason: reason, detail: detail, text: "The application did not answer."}
	switch reason {
	case ReasonNoRoute:
		a.status, a.text = http.StatusNotFound, "Nothing is served at this address."
	case ReasonNoEndpoint:
		a.status, a.text, a.retryAfter = http.StatusServiceUnavailable, "The application is not running right now.", 5
	case ReasonHoldExpired:
		a.status, a.text, a.retryAfter = http.StatusServiceUnavailable, "The application was asleep and did not wake up in time. Please try again.", 5
	case ReasonBadReference:
		a.status, a.text = http.StatusInternalServerError, "This address is not set up completely."
	case ReasonTimeout:
		a.status, a.text = http.StatusGatewayTimeout, "The application did not answer in time."
	case ReasonLimit:
		a.status, a.text, a.retryAfter = http.StatusServiceUnavailable, "Too much is going on. Please try again.", 2
	case ReasonBadRequest:
		a.status, a.text = http.StatusBadRequest, "The request is not valid."
	}
	return a
}

// body returns the page in the form that accept, a request's header, prefers.
func (a *answer) body(accept, id string) (contentType, text string) {
	title := cmp.Or(http.StatusText(a.status), "Error")
	if i := strings.Index(accept, "application/json"); i >= 0 && (!strings.Contains(accept, "text/html") || i < strings.Index(accept, "text/html")) {
		quoted, err := json.Marshal(map[string]any{"status": a.status, "error": a.text, "requestID": id})
		if err == nil {
			return "application/json", string(quoted) + "\n"
		}
	}
	if strings.Contains(accept, "text/html") {
		return "text/html; charset=utf-8", fmt.Sprintf("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>%d %s</title>"+
			"<style>body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:18vh auto;padding:0 1em;color:#222}small{color:#777}</style>"+
			"<h1>%s</h1><p>%s<p><small>%d &middot; request %s</small></html>\n", a.status, title, title, html.EscapeString(a.text), a.status, html.EscapeString(id))
	}
	return "text/plain; charset=utf-8", fmt.Sprintf("%d %s: %s (request %s)\n", a.status, title, a.text, id)
}
