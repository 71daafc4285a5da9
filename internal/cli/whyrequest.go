package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/platform/deploy"
)

// requestEntry is what a gateway noted of a request.
type requestEntry struct {
	Time      time.Time         `json:"time"`
	RequestID string            `json:"id"`
	Client    string            `json:"client"`
	Method    string            `json:"method"`
	Scheme    string            `json:"scheme"`
	Host      string            `json:"host"`
	Path      string            `json:"path"`
	Protocol  string            `json:"protocol"`
	Status    int               `json:"status"`
	BytesIn   int64             `json:"in"`
	BytesOut  int64             `json:"out"`
	Seconds   float64           `json:"seconds"`
	Held      float64           `json:"held,omitempty"`
	Tries     int               `json:"tries,omitempty"`
	Route     string            `json:"route,omitempty"`
	Service   string            `json:"service,omitempty"`
	Endpoint  string            `json:"endpoint,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Detail    string            `json:"detail,omitempty"`
	Agent     string            `json:"agent,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// whyRequest explains what became of a request, by the id that its answer carried.
func (a *app) whyRequest(cmd *cobra.Command, f *appFlags, id string) error {
	t, _, err := a.connect(cmd, f)
	if err != nil {
		return err
	}
	body, err := t.cluster.Open(cmd.Context(), "/apis/logs.gantry.dev/v1alpha1/requests/"+url.PathEscape(id))
	if deploy.NotServed(err) {
		return fmt.Errorf("this cluster's way in is not Gantry's, so nobody noted its requests: see the logs of its ingress controller")
	}
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	var found []requestEntry
	if err := json.NewDecoder(body).Decode(&found); err != nil {
		return fmt.Errorf("read what the gateways noted: %w", err)
	}
	if len(found) == 0 {
		return fmt.Errorf("no gateway knows the request %s: it was never here, it is too old, or it belongs to a project that you may not read", id)
	}
	for i := range found {
		if err := a.printWhy(explainRequest(&found[i], time.Now())); err != nil {
			return err
		}
	}
	return nil
}

// explainRequest is pure.
func explainRequest(e *requestEntry, now time.Time) *whyAnswer {
	status := "had no answer"
	if e.Status > 0 {
		status = strings.TrimSpace(fmt.Sprintf("was answered %d %s", e.Status, http.StatusText(e.Status)))
	}
	w := &whyAnswer{About: "request/" + e.RequestID}
	where := e.Scheme + "://" + e.Host + e.Path
	if e.Host == "" {
		where = "a request"
	}
	w.Summary = fmt.Sprintf("%s %s, %s ago, %s", strings.TrimSpace(e.Method+" "+where), status, age(now.Sub(e.Time)), requestMeaning(e))
	w.fact("at %s from %s by %s%s", e.Time.UTC().Format("2006-01-02 15:04:05.000 MST"), e.Client, cmp.Or(e.Protocol, "HTTP"), withPrefix(", ", e.Agent))
	timing := fmt.Sprintf("it took %s", inSeconds(e.Seconds))
	if e.Held > 0 {
		timing += fmt.Sprintf(", %s of it waiting for the application to wake", inSeconds(e.Held))
	}
	w.fact("%s; %d bytes came, %d went", timing, e.BytesIn, e.BytesOut)
	if e.Route != "" {
		w.fact("route %s", e.Route)
	}
	if e.Service != "" {
		w.fact("service %s%s", e.Service, releaseOfEntry(e))
	}
	if e.Pod != "" || e.Endpoint != "" {
		tries := ""
		if e.Tries > 1 {
			tries = fmt.Sprintf(", the last of %d tries", e.Tries)
		}
		w.fact("pod %s at %s%s", cmp.Or(e.Pod, "unknown"), e.Endpoint, tries)
	}
	if e.Reason != "" {
		w.fact("reason %s%s", e.Reason, withPrefix(": ", e.Detail))
	}
	w.Do = requestAdvice(e)
	return w
}

func inSeconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}

func withPrefix(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func releaseOfEntry(e *requestEntry) string {
	var parts []string
	if app := e.Labels["app"]; app != "" {
		parts = append(parts, "of app "+app)
	}
	if process := e.Labels["process"]; process != "" {
		parts = append(parts, "process "+process)
	}
	if release := e.Labels["release"]; release != "" {
		parts = append(parts, "v"+release)
	}
	if len(parts) == 0 {
		return ""
	}
	return ", " + strings.Join(parts, " ")
}

// requestMeaning says in plain words what a reason means.
func requestMeaning(e *requestEntry) string {
	switch e.Reason {
	case "":
		return "and nothing was wrong on the way"
	case "NoRoute":
		return "because nothing is served at this host and path"
	case "NoEndpoint":
		return "because no pod of the application was ready"
	case "BadReference":
		return "because the route leads to a service that is not there"
	case "ConnectFailed":
		return "because no pod took the connection"
	case "Timeout":
		return "because the application took longer than its route allows"
	case "UpstreamReset":
		return "because the application broke the connection off before its answer was whole"
	case "UpstreamError":
		return "and it is the application itself that answered so"
	case "HoldExpired":
		return "because the application was asleep and did not wake in time"
	case "Limit":
		return "because it went over a limit of the gateway"
	case "BadRequest":
		return "because it was not valid HTTP"
	case "ClientGone":
		return "because the client went away before the answer"
	}
	return "because of " + e.Reason
}

// requestAdvice is what to do about it.
func requestAdvice(e *requestEntry) []string {
	app := e.Labels["app"]
	logs := "see what it wrote then: gantry logs"
	if app != "" {
		logs += " -a " + app
	}
	logs += " --since " + sinceFlag(time.Since(e.Time))
	why := "see how the application is: gantry status"
	if app != "" {
		why = "see why: gantry why app/" + app
	}
	switch e.Reason {
	case "NoRoute":
		return []string{"see the addresses that are served: gantry status", "add this host to an application: gantry domain set " + cmp.Or(e.Host, "HOST") + " -a APP"}
	case "NoEndpoint", "BadReference":
		return []string{why, logs}
	case "ConnectFailed":
		return []string{"listen on 0.0.0.0 and on the port in $PORT; a pod that just crashed refuses, too", why, logs}
	case "Timeout":
		return []string{"make the answer quicker, or raise the time-out of the route", logs}
	case "UpstreamReset", "UpstreamError":
		return []string{logs}
	case "HoldExpired":
		return []string{"start quicker, or keep one awake: scale: {min: 1}", why, logs}
	case "Limit":
		return []string{"see the limits of the gateway: docs/user/gateway.md"}
	case "BadRequest":
		return []string{"the client's program has to mend it"}
	}
	return nil
}

// sinceFlag is a duration for --since that surely holds a time so long ago.
func sinceFlag(ago time.Duration) string {
	return fmt.Sprintf("%dm", int(ago/time.Minute)+2)
}
