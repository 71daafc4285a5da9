package fairness_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/fairness"
	"gantry.dev/gantry/internal/gantrytest"
)

// TestObjectsCount: a FlowSchema that an administrator makes is what requests are counted under, and its condition
// tells when its priority level is missing.
func TestObjectsCount(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{})
	schema := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "strangers"}, Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "slow"}, MatchingPrecedence: 2,
		Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
			Subjects:         []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: "system:unauthenticated"}}},
			NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/version"}}},
		}}}}
	if err := c.Client.Create(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	dangling := func(want flowcontrolv1.ConditionStatus) {
		t.Helper()
		c.Eventually("Dangling is "+string(want), func() error {
			var now flowcontrolv1.FlowSchema
			if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(schema), &now); err != nil {
				return err
			}
			if len(now.Status.Conditions) != 1 || now.Status.Conditions[0].Status != want {
				return fmt.Errorf("conditions are %+v", now.Status.Conditions)
			}
			return nil
		})
	}
	counted := func(path string) string {
		w := httptest.NewRecorder()
		c.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Header().Get(fairness.SchemaHeader)
	}
	dangling(flowcontrolv1.ConditionTrue)
	if got := counted("/version"); got == string(schema.UID) {
		t.Error("a schema without its priority level counts")
	}
	level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "slow"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
		Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
			LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}}}}
	if err := c.Client.Create(t.Context(), level); err != nil {
		t.Fatal(err)
	}
	dangling(flowcontrolv1.ConditionFalse)
	c.Eventually("requests count under the new schema", func() error {
		if got := counted("/version"); got != string(schema.UID) {
			return fmt.Errorf("they count under %q", got)
		}
		return nil
	})
	if got := counted("/api"); got == "" || got == string(schema.UID) {
		t.Errorf("another path counts under %q", got)
	}
	if err := c.Client.Delete(t.Context(), level); err != nil {
		t.Fatal(err)
	}
	dangling(flowcontrolv1.ConditionTrue)
}
