package compile

import (
	"reflect"
	"testing"
	"time"

	"gantry.dev/gantry/internal/network/gateway"
)

func TestLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		in    map[string]string
		want  gateway.RouteLimits
		wrong bool
	}{
		"none":            {},
		"body":            {in: map[string]string{AnnotationMaxBody: "10Mi"}, want: gateway.RouteLimits{BodyBytes: 10 << 20}},
		"requests":        {in: map[string]string{AnnotationMaxRequests: "40"}, want: gateway.RouteLimits{Requests: 40}},
		"rate":            {in: map[string]string{AnnotationRate: "20/s"}, want: gateway.RouteLimits{Rate: 20, Burst: 20}},
		"slow rate":       {in: map[string]string{AnnotationRate: "30/m"}, want: gateway.RouteLimits{Rate: 0.5, Burst: 1}},
		"burst":           {in: map[string]string{AnnotationRate: "20/s, burst=50"}, want: gateway.RouteLimits{Rate: 20, Burst: 50}},
		"no unit":         {in: map[string]string{AnnotationRate: "20"}, wrong: true},
		"zero":            {in: map[string]string{AnnotationRate: "0/s"}, wrong: true},
		"another word":    {in: map[string]string{AnnotationRate: "20/s,peak=50"}, wrong: true},
		"no size":         {in: map[string]string{AnnotationMaxBody: "big"}, wrong: true},
		"no number":       {in: map[string]string{AnnotationMaxRequests: "-1"}, wrong: true},
		"what is right":   {in: map[string]string{AnnotationMaxRequests: "x", AnnotationMaxBody: "1k"}, want: gateway.RouteLimits{BodyBytes: 1000}, wrong: true},
		"another's names": {in: map[string]string{"example.com/rate": "1/s"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := limits(tc.in)
			if (err != nil) != tc.wrong {
				t.Errorf("error %v", err)
			}
			if (got == nil) != (tc.want == gateway.RouteLimits{}) || got != nil && *got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	for text, want := range map[string]*gateway.Retry{
		"":                                     nil,
		"attempts=3,codes=502 503":             {Attempts: 3, Codes: []int{502, 503}},
		"attempts=1, codes=500, backoff=100ms": {Attempts: 1, Codes: []int{500}, Backoff: 100 * time.Millisecond},
	} {
		if got, err := retry(map[string]string{AnnotationRetry: text}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"3", "attempts=3", "codes=500", "attempts=11,codes=500", "attempts=1,codes=200", "attempts=1,codes=500,backoff=1h", "tries=3,codes=500"} {
		if got, err := retry(map[string]string{AnnotationRetry: text}); err == nil || got != nil {
			t.Errorf("%q: %+v, no error", text, got)
		}
	}
}
