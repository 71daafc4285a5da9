package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

// page is what tests read from a list or from the error in its place.
type page struct {
	Kind     string
	Reason   metav1.StatusReason
	Message  string
	Details  *metav1.StatusDetails
	Metadata metav1.ListMeta
	Items    []metav1.PartialObjectMetadata
}

func (p *page) names() []string {
	var out []string
	for i := range p.Items {
		out = append(out, p.Items[i].Name)
	}
	return out
}

func (c *cluster) page(t *testing.T, query url.Values) (int, page) {
	t.Helper()
	w := c.do(t, "root", "GET", "/api/v1/namespaces/default/configmaps?"+query.Encode(), nil)
	var out page
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return w.Code, out
}

// TestListConsistency holds every combination of resourceVersion, resourceVersionMatch and limit against the table in
// Kubernetes' documentation (API concepts, "resourceVersion parameters in list").
func TestListConsistency(t *testing.T) {
	c := start(t, Options{})
	var revisions []string // after a, b, c
	for _, name := range []string{"a", "b", "c"} {
		made := c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}})
		revisions = append(revisions, made.GetResourceVersion())
	}
	old, newest := revisions[1], revisions[2]
	last, _ := strconv.Atoi(newest)
	future := strconv.Itoa(last + 1000)
	any3, first2 := []string{"a", "b", "c"}, []string{"a", "b"}
	for name, tc := range map[string]struct {
		revision, match, limit string
		code                   int
		names                  []string
		at                     string // the answer's resourceVersion
		says                   string
	}{
		"unset: most recent":        {"", "", "", 200, any3, newest, ""},
		"unset, limit: most recent": {"", "", "2", 200, first2, newest, ""},
		"unset, match exact":        {"", "Exact", "", 422, nil, "", "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"unset, match not older":    {"", "NotOlderThan", "1", 422, nil, "", "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"0: any":                    {"0", "", "", 200, any3, newest, ""},
		"0, limit: any":             {"0", "", "2", 200, first2, newest, ""},
		"0, match exact":            {"0", "Exact", "", 422, nil, "", `resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"`},
		"0, match not older: any":   {"0", "NotOlderThan", "", 200, any3, newest, ""},
		"old: not older":            {old, "", "", 200, any3, newest, ""},
		"old, limit: exact, as before there was match": {old, "", "5", 200, first2, old, ""},
		"old, match exact":            {old, "Exact", "", 200, first2, old, ""},
		"old, match exact, limit":     {old, "Exact", "1", 200, []string{"a"}, old, ""},
		"old, match not older":        {old, "NotOlderThan", "", 200, any3, newest, ""},
		"old, match not older, limit": {old, "NotOlderThan", "2", 200, first2, newest, ""},
		"unknown match":               {old, "Newer", "", 422, nil, "", "supported values"},
		"no number":                   {"x", "", "", 400, nil, "", "Invalid value"},
	} {
		t.Run(name, func(t *testing.T) {
			query := url.Values{}
			for key, value := range map[string]string{"resourceVersion": tc.revision, "resourceVersionMatch": tc.match, "limit": tc.limit} {
				if value != "" {
					query.Set(key, value)
				}
			}
			code, got := c.page(t, query)
			if code != tc.code || !slices.Equal(got.names(), tc.names) {
				t.Fatalf("%d %v %s; want %d %v", code, got.names(), got.Message, tc.code, tc.names)
			}
			if code == 200 && got.Metadata.ResourceVersion != tc.at {
				t.Errorf("resourceVersion is %s, want %s", got.Metadata.ResourceVersion, tc.at)
			}
			if tc.says != "" && !strings.Contains(strings.ReplaceAll(got.Message, `"`, `\"`), strings.ReplaceAll(tc.says, `\"`, `\"`)) {
				t.Errorf("message %q, want %q in it", got.Message, tc.says)
			}
		})
	}
	for _, match := range []string{"", "Exact", "NotOlderThan"} {
		t.Run("future "+match, func(t *testing.T) {
			t.Parallel()
			query := url.Values{"resourceVersion": {future}}
			if match != "" {
				query.Set("resourceVersionMatch", match)
			}
			code, got := c.page(t, query)
			if code != 504 || got.Reason != metav1.StatusReasonTimeout || got.Details.RetryAfterSeconds != 1 ||
				got.Details.Causes[0].Type != metav1.CauseTypeResourceVersionTooLarge {
				t.Errorf("%d %+v; want 504 with a cause and a time to try again", code, got)
			}
		})
	}
}

// TestPages: pages belong to one revision, whatever happens between them, forwards through deletions too.
func TestPages(t *testing.T) {
	c := start(t, Options{})
	for i := range 6 {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i)}})
	}
	_, first := c.page(t, url.Values{"limit": {"2"}})
	if *first.Metadata.RemainingItemCount != 4 {
		t.Errorf("remaining = %d, want 4", *first.Metadata.RemainingItemCount)
	}
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m2a"}})
	if w := c.do(t, "root", "DELETE", "/api/v1/namespaces/default/configmaps/m3", nil); w.Code != 200 {
		t.Fatal(w.Body)
	}
	if w := c.do(t, "root", "PATCH", "/api/v1/namespaces/default/configmaps/m4", strings.NewReader(`{"data":{"k":"new"}}`),
		"Content-Type", "application/merge-patch+json"); w.Code != 200 {
		t.Fatal(w.Body)
	}
	all, next := first.names(), first
	for next.Metadata.Continue != "" {
		var code int
		if code, next = c.page(t, url.Values{"limit": {"2"}, "continue": {next.Metadata.Continue}}); code != 200 {
			t.Fatalf("%d %s", code, next.Message)
		}
		if next.Metadata.ResourceVersion != first.Metadata.ResourceVersion {
			t.Errorf("a page is of revision %s, the first of %s", next.Metadata.ResourceVersion, first.Metadata.ResourceVersion)
		}
		all = append(all, next.names()...)
	}
	if want := []string{"m0", "m1", "m2", "m3", "m4", "m5"}; !slices.Equal(all, want) {
		t.Errorf("pages hold %v, want %v", all, want)
	}
	if _, selected := c.page(t, url.Values{"limit": {"2"}, "labelSelector": {"!x"}}); selected.Metadata.RemainingItemCount != nil {
		t.Error("a list with a selector says how many remain")
	}
	token := url.QueryEscape(first.Metadata.Continue)
	for query, want := range map[string]string{
		"continue=" + token + "&resourceVersion=5":                            "specifying resource version is not allowed when using continue",
		"continue=" + token + "&resourceVersionMatch=Exact&resourceVersion=5": "resourceVersionMatch is forbidden when continue is provided",
		"continue=%25%25": "continue key is not valid",
		"continue=" + forged(`{"v":"meta.k8s.io/v1","rv":0,"start":"a\u0000"}`):  "continue key is not valid",
		"continue=" + forged(`{"v":"meta.k8s.io/v1","rv":5,"start":""}`):         "continue key is not valid",
		"continue=" + forged(`{"v":"meta.k8s.io/v2","rv":5,"start":"a\u0000"}`):  "continue key is not valid",
		"continue=" + forged(`{"v":"meta.k8s.io/v1","rv":-7,"start":"a\u0000"}`): "continue key is not valid",
	} {
		if w := c.do(t, "root", "GET", "/api/v1/namespaces/default/configmaps?"+query, nil); w.Code < 400 || w.Code > 422 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s; want %q", query, w.Code, w.Body, want)
		}
	}
}

func forged(token string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(token))
}

// TestExpiredPages: when the revision of a list has been compacted, the answer is 410 with a token to go on from there.
func TestExpiredPages(t *testing.T) {
	c := startOver(t, Options{}, store.Options{History: 2, CompactInterval: 20 * time.Millisecond})
	for i := range 4 {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i)}})
	}
	_, first := c.page(t, url.Values{"limit": {"2"}})
	code, got := 0, page{}
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; code != 410; i++ { // until etcd has compacted the first page's revision
		if time.Now().After(deadline) {
			t.Fatal("the token does not expire")
		}
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}})
		if code, got = c.page(t, url.Values{"limit": {"2"}, "continue": {first.Metadata.Continue}}); code != 200 && code != 410 {
			t.Fatalf("%d %s", code, got.Message)
		}
	}
	if got.Reason != metav1.StatusReasonExpired || got.Metadata.Continue == "" || !strings.Contains(got.Message, "inconsistent list") {
		t.Fatalf("the answer to an expired token is %+v", got)
	}
	code, rest := c.page(t, url.Values{"limit": {"2"}, "continue": {got.Metadata.Continue}})
	if code != 200 || !slices.Equal(rest.names(), []string{"m2", "m3"}) || rest.Metadata.ResourceVersion == first.Metadata.ResourceVersion {
		t.Errorf("the inconsistent rest = %d %v at %s", code, rest.names(), rest.Metadata.ResourceVersion)
	}
	if code, got = c.page(t, url.Values{"resourceVersion": {first.Metadata.ResourceVersion}, "resourceVersionMatch": {"Exact"}}); code != 410 || got.Reason != metav1.StatusReasonExpired {
		t.Errorf("a list of a compacted revision: %d %+v", code, got)
	}
}
