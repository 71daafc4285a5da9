package managedfields

import (
	"slices"
	"testing"
)

// TestPlansUnderstandEverything names what the plans leave to upstream, and the lists that
// have to be looked at even where nothing differs: these must be at the top of an object.
func TestPlansUnderstandEverything(t *testing.T) {
	tracker := newTracker(t)
	var left, unsure []string
	for _, k := range testKinds() {
		root := newViews(t, tracker, k).fast[""].kind.root
		for _, f := range root.fields {
			if f.node.unsure {
				unsure = append(unsure, k.gvk().Kind+"."+f.name)
			}
		}
	}
	lists := 0
	for _, n := range tracker.planner.known {
		if n.shape == opaque {
			left = append(left, n.typ.String())
		}
		if n.unsure {
			lists++
		}
	}
	slices.Sort(left)
	if want := []string{"v1.FieldsV1"}; !slices.Equal(left, want) {
		t.Errorf("left to upstream are %q, want %q", left, want)
	}
	// The others are deeper: conditions of FlowSchema and PriorityLevelConfiguration, versions of StorageVersion.
	if want := []string{"ServiceAccount.secrets"}; !slices.Equal(unsure, want) || lists != len(want)+3 {
		t.Errorf("lists whose items may lack a key are %q of %d, want only %q", unsure, lists, want)
	}
}
