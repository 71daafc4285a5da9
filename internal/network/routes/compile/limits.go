package compile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

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

// maxBackoff bounds the wait between tries.
const maxBackoff = time.Minute

// retry reads AnnotationRetry; nil if there is none. What cannot be read is told and left out.
func retry(annotations map[string]string) (*gateway.Retry, error) {
	text := annotations[AnnotationRetry]
	if text == "" {
		return nil, nil //nolint:nilnil // no retries is no error
	}
	out := &gateway.Retry{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch name {
		case "attempts":
			if out.Attempts, err = strconv.Atoi(value); out.Attempts < 1 || out.Attempts > 10 {
				err = errors.New("attempts are 1 to 10")
			}
		case "codes":
			for code := range strings.FieldsSeq(value) {
				n, parseErr := strconv.Atoi(code)
				if parseErr != nil || n < 400 || n > 599 {
					err = errors.New("codes are 400 to 599")
				}
				out.Codes = append(out.Codes, n)
			}
		case "backoff":
			if out.Backoff, err = time.ParseDuration(value); err == nil && (out.Backoff < 0 || out.Backoff > maxBackoff) {
				err = fmt.Errorf("the backoff is at most %v", maxBackoff)
			}
		default:
			err = fmt.Errorf("there is no %q", name)
		}
		if err != nil {
			return nil, fmt.Errorf("annotation %s: want attempts=3,codes=502 503,backoff=100ms, not %q: %w", AnnotationRetry, text, err)
		}
	}
	if out.Attempts == 0 || len(out.Codes) == 0 {
		return nil, fmt.Errorf("annotation %s: %q has no attempts or no codes", AnnotationRetry, text)
	}
	return out, nil
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
