package compile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/network/gateway"
)

// maxRate is the highest rate that is taken, a second.
const maxRate = 1e6

// limits reads the annotations of a route or an Ingress; nil if there are none. What cannot be read is no limit, and
// is told.
func limits(annotations map[string]string) (*gateway.RouteLimits, error) {
	out := gateway.RouteLimits{}
	var errs []error
	if text := annotations[AnnotationMaxBody]; text != "" {
		size, err := resource.ParseQuantity(text)
		if err != nil || size.Value() < 1 {
			errs = append(errs, fmt.Errorf("annotation %s: want a size such as 10Mi, not %q", AnnotationMaxBody, text))
		} else {
			out.BodyBytes = size.Value()
		}
	}
	if text := annotations[AnnotationMaxRequests]; text != "" {
		count, err := strconv.ParseUint(text, 10, 31)
		if err != nil || count < 1 {
			errs = append(errs, fmt.Errorf("annotation %s: want a number of requests, not %q", AnnotationMaxRequests, text))
		} else {
			out.Requests = int(count)
		}
	}
	if text := annotations[AnnotationRate]; text != "" {
		rate, burst, ok := parseRate(text)
		if !ok {
			errs = append(errs, fmt.Errorf("annotation %s: want a rate such as 20/s, 600/m or 20/s,burst=50, not %q", AnnotationRate, text))
		} else {
			out.Rate, out.Burst = rate, burst
		}
	}
	if out == (gateway.RouteLimits{}) {
		return nil, errors.Join(errs...)
	}
	return &out, errors.Join(errs...)
}

// parseRate reads "20/s", "600/m" or "20/s,burst=50". Without a burst it is what a second has, at least one.
func parseRate(text string) (perSecond float64, burst int, ok bool) {
	text, more, hasBurst := strings.Cut(strings.ReplaceAll(text, " ", ""), ",")
	number, unit, _ := strings.Cut(text, "/")
	count, err := strconv.ParseUint(number, 10, 31)
	seconds := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	if err != nil || count == 0 || seconds == 0 || float64(count)/seconds > maxRate {
		return 0, 0, false
	}
	perSecond = float64(count) / seconds
	if !hasBurst {
		return perSecond, max(int(perSecond), 1), true
	}
	value, found := strings.CutPrefix(more, "burst=")
	n, err := strconv.ParseUint(value, 10, 31)
	if !found || err != nil || n == 0 {
		return 0, 0, false
	}
	return perSecond, int(n), true
}
